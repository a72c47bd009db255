"""Calibration: one pass of images through the network, and the ranges that can be read from it.

INT8 maps a range of each tensor to 256 steps. A wide range loses small differences, a narrow one
cuts off peaks; the methods differ in where they draw that line.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, create_calibrator
from onnxruntime.quantization.calibrate import HistogramCollector
from tqdm import tqdm

from packshot.bundle import INPUT
from packshot.image import Pixels

METHODS = ("percentile", "entropy", "minmax")
"""In the order in which they are tried."""

FEWEST_IMAGES, MOST_IMAGES = 8, 1000
PERCENTILE = 99.99
BINS = 2048
# Entropy tries every threshold, in plain Python: a quarter of the bins takes seconds, not minutes.
ENTROPY_MERGED_BINS = 4
ENTROPY_STEPS = 128
# The calibrator holds every intermediate tensor of the images it is handed at once, 90 MB for each
# image of a ResNet-50: handed eight at a time, it adds 0.8 GB to the peak of the exporter.
CHUNK_IMAGES = 8

Range = tuple[float, float]


class Calibration(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Ranges by tensor of the prepared fp32 model. `method`: how they were read."""

    method: str
    images: int
    ranges: dict[str, Range]


class Histograms:
    """What the tensors of a network held while it saw the calibration images."""

    def __init__(self, prepared: Path, images: Pixels, folder: Path) -> None:
        """Runs the images, uint8 [N, crop, crop, 3]. `folder` is for a file of work."""
        self.images = len(images)
        self._collector: HistogramCollector = _collect(prepared, images, folder)

    def calibration(self, method: str) -> Calibration:
        """The ranges that one of `METHODS` reads from the histograms."""
        ranges = {"percentile": self._percentile, "entropy": self._entropy, "minmax": self._minmax}
        found = {
            name: (float(low), float(high)) for name, (low, high, *_) in ranges[method]().items()
        }
        return Calibration(method=method, images=self.images, ranges=found)

    def _percentile(self) -> dict[str, Any]:
        with _silence():
            found: dict[str, Any] = self._collector.compute_percentile()
        return found

    def _entropy(self) -> dict[str, Any]:
        """The threshold whose 128 steps tell least of another distribution (Migacz, GTC 2017)."""
        collector = HistogramCollector(
            "entropy", False, BINS // ENTROPY_MERGED_BINS, ENTROPY_STEPS, PERCENTILE, "same"
        )
        collector.histogram_dict = {
            name: _coarser(histogram) for name, histogram in self._collector.histogram_dict.items()
        }
        with _silence():
            found: dict[str, Any] = collector.compute_entropy()
        return found

    def _minmax(self) -> dict[str, Any]:
        histograms = self._collector.histogram_dict
        return {name: (low, high) for name, (_, _, low, high, _) in histograms.items()}


class PixelReader(CalibrationDataReader):
    """Hands the calibrator one image at a time."""

    def __init__(self, images: Pixels) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [{INPUT: images[i : i + 1]} for i in range(len(images))]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def _collect(prepared: Path, images: Pixels, folder: Path) -> Any:
    calibrator = create_calibrator(
        prepared,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"percentile": PERCENTILE, "num_bins": BINS, "symmetric": False},
    )
    chunks = range(0, len(images), CHUNK_IMAGES)
    for start in tqdm(chunks, desc="calibrating INT8", unit="chunk", disable=None):
        with _silence():
            calibrator.collect_data(PixelReader(images[start : start + CHUNK_IMAGES]))
    return calibrator.collector


def _coarser(histogram: Sequence[Any]) -> tuple[Any, ...]:
    """The same histogram, symmetric around zero, with `ENTROPY_MERGED_BINS` bins in one."""
    counts, edges, low, high, _ = histogram
    width = edges[1] - edges[0]
    padding = -len(counts) % (2 * ENTROPY_MERGED_BINS) // 2  # on both sides, zero in the middle
    counts = np.pad(counts, padding).reshape(-1, ENTROPY_MERGED_BINS).sum(axis=1)
    end = edges[-1] + padding * width
    return counts, np.linspace(-end, end, len(counts) + 1, dtype=edges.dtype), low, high, end


@contextmanager
def _silence() -> Iterator[None]:
    """The calibrator prints its progress to standard output, which is ours."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
