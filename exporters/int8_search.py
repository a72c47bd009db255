"""INT8 by the first way that passes its gate, from the mildest to the most intrusive.

Calibration methods first, in their order. If none passes, the best of them goes on with its first
and last layer in float, and then with corrected biases. Each attempt and its figures are kept.
"""

from pathlib import Path
from typing import NamedTuple

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
from packshot.errors import AnswersDiffer
from packshot.image import Pixels

BIAS_IMAGES = 32


class Way(NamedTuple):
    """How to quantise."""

    calibration: Calibration
    float_ends: bool = False  # the first and the last layer stay in float
    bias: bool = False  # biases make up for the rounding of the weights

    def __str__(self) -> str:
        method = self.calibration.method
        parts = [f"{method} {PERCENTILE}" if method == "percentile" else method]
        parts += ["first and last layer in float"] * self.float_ends + [
            "biases corrected"
        ] * self.bias
        return ", ".join(parts)


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
        self._corrected = folder / "corrected.onnx"
        prepare(fp32, self._prepared)
        self._histograms = Histograms(self._prepared, images, folder)

    def run(self, target: Path, placement: Placement) -> Found:
        """Writes `target`. Raises AnswersDiffer, with every attempt, if no way passes."""
        attempts: list[Attempt] = []
        ways = []
        for method in METHODS:
            ways.append(Way(self._histograms.calibration(method)))
            attempts.append(self._attempt(ways[-1], target, placement))
            if not attempts[-1].fault:
                return Found(ways[-1], tuple(attempts))
        best = max(zip(attempts, ways, strict=True), key=lambda pair: _closeness(pair[0]))[1]
        for way in (best._replace(float_ends=True), best._replace(float_ends=True, bias=True)):
            attempts.append(self._attempt(way, target, placement))
            if not attempts[-1].fault:
                return Found(way, tuple(attempts))
        target.unlink()
        raise AnswersDiffer(
            f"no way to quantise passes on {attempts[0].measured.images} held-out images: "
            + "; ".join(f"{one.way}: {one.fault}" for one in attempts)
        )

    def _attempt(self, way: Way, target: Path, placement: Placement) -> Attempt:
        prepared = self._prepared
        excluded = first_and_last(prepared) if way.float_ends else ()
        if way.bias:
            images = self._images[:BIAS_IMAGES]
            correct_bias(self._prepared, self._corrected, images, excluded)
            prepared = self._corrected
        quantize(prepared, target, way.calibration, placement, excluded)
        if placement is CPU:
            check_fused(self._fp32, target, excluded)
        engine = open_onnx(target, "int8")
        measured = measure(engine, self._work.held_out, self._work.temperature)
        engine.close()
        found = "; ".join(faults(measured, self._work.gates["int8"]))
        if found:
            print(f"int8, {way}: {found}", flush=True)
        return Attempt(way=str(way), measured=measured, fault=found)


def _closeness(attempt: Attempt) -> tuple[float, float]:
    """The closer to PyTorch, the greater."""
    return (attempt.measured.agreement, -attempt.measured.kl_divergence)
