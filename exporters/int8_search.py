"""INT8 by the first way that passes its gate, from the mildest to the most intrusive.

Calibration methods first, in their order. If none passes, the best of them goes on with its first
and last layer in float, and then with corrected biases. Each attempt and its figures are kept.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec

from exporters.calibration import METHODS, PERCENTILE, Calibration, Histograms
from exporters.gates import faults, measure
from exporters.proof import Work, open_onnx
from exporters.to_int8 import (
    CPU,
    Placement,
    check_fused,
    correct_bias,
    first_and_last,
    prepare,
    quantize,
)
from packshot.bundle import Attempt
from packshot.errors import AnswersDiffer, DamagedFile
from packshot.image import Pixels

BIAS_IMAGES = 32


class Way(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How to quantise."""

    calibration: Calibration
    float_ends: bool = False  # the first and the last layer stay in float
    bias: bool = False  # biases make up for the rounding of the weights

    def __str__(self) -> str:
        method = self.calibration.method
        parts = [f"{method} {PERCENTILE}" if method == "percentile" else method]
        parts += ["first and last layer in float"] * self.float_ends
        return ", ".join(parts + ["biases corrected"] * self.bias)


Ways = dict[str, Way]
"""By engine: what calibration.json holds, so that another machine needs no images."""


def read_ways(path: Path) -> Ways:
    """Raises DamagedFile."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=Ways)
    except (OSError, msgspec.MsgspecError) as error:
        raise DamagedFile(f"{path} does not hold ways to quantise: {error}") from error


def quantize_by(
    way: Way, prepared: Path, target: Path, placement: Placement, images: Pixels
) -> tuple[str, ...]:
    """Writes `target` from the prepared model; returns the names of the nodes left in float.

    `images`: uint8 [N, crop, crop, 3], to correct biases by.
    """
    excluded = first_and_last(prepared) if way.float_ends else ()
    if way.bias:
        corrected = prepared.with_name("corrected.onnx")
        correct_bias(prepared, corrected, images[:BIAS_IMAGES], excluded)
        prepared = corrected
    quantize(prepared, target, way.calibration, placement, excluded)
    return excluded


class Found(NamedTuple):
    """The way that passed, the last of `attempts`."""

    way: Way
    attempts: tuple[Attempt, ...]


class Search:
    """What the attempts on one network share: the prepared model and one pass of images."""

    def __init__(self, work: Work, fp32: Path, images: Pixels, folder: Path) -> None:
        """`images`: uint8 [N, crop, crop, 3] to calibrate with. `folder`: for files of work."""
        self._work = work
        self._fp32 = fp32
        self._images = images
        self._prepared = folder / "prepared.onnx"
        prepare(fp32, self._prepared)
        self._histograms = Histograms(self._prepared, images, folder)

    def run(self, target: Path, placement: Placement) -> Found:
        """Writes `target`. Raises AnswersDiffer, with every attempt, if no way passes."""
        attempts: list[Attempt] = []
        ways = []
        for method in METHODS:
            ways.append(Way(calibration=self._histograms.calibration(method)))
            attempts.append(self._attempt(ways[-1], target, placement))
            if not attempts[-1].fault:
                return Found(ways[-1], tuple(attempts))
        best = ways[closest(attempts)].calibration
        for bias in (False, True):
            way = Way(calibration=best, float_ends=True, bias=bias)
            attempts.append(self._attempt(way, target, placement))
            if not attempts[-1].fault:
                return Found(way, tuple(attempts))
        target.unlink()
        raise AnswersDiffer(
            f"no way to quantise passes on {attempts[0].measured.images} held-out images: "
            + "; ".join(f"{one.way}: {one.fault}" for one in attempts)
        )

    def _attempt(self, way: Way, target: Path, placement: Placement) -> Attempt:
        excluded = quantize_by(way, self._prepared, target, placement, self._images)
        if placement is CPU:
            check_fused(self._fp32, target, excluded)
        engine = open_onnx(target, "int8")
        try:
            measured = measure(engine, self._work.held_out, self._work.temperature)
        finally:
            engine.close()
        found = "; ".join(faults(measured, self._work.gates["int8"]))
        if found:
            print(f"int8, {way}: {found}", flush=True)
        return Attempt(way=str(way), measured=measured, fault=found)


def closest(attempts: Sequence[Attempt]) -> int:
    """Which of them answers most nearly as PyTorch does."""

    def closeness(attempt: Attempt) -> tuple[float, float]:
        return (attempt.measured.agreement, -attempt.measured.kl_divergence)

    return max(range(len(attempts)), key=lambda number: closeness(attempts[number]))
