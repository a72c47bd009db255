"""fp32 ONNX to INT8 for CPUs: static QDQ, activations uint8 asymmetric, weights int8 per channel.

That combination (U8S8) is the one which ONNX Runtime turns into a fully fused integer graph on
CPUs with VNNI; a symmetric range leaves float islands and runs slower than fp32. Calibration takes
the 99.99th percentile of each tensor, on training images only.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    create_calibrator,
    quantize_static,
)
from onnxruntime.quantization.calibrate import save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process
from tqdm import tqdm

from packshot.bundle import INPUT
from packshot.image import Pixels

PERCENTILE = 99.99
# The calibrator holds every intermediate tensor of the images it is handed at once, 90 MB for each
# image of a ResNet-50: handed eight at a time, it adds 0.8 GB to the peak of the exporter.
CHUNK_IMAGES = 8


class PixelReader(CalibrationDataReader):
    """Hands the calibrator one image at a time."""

    def __init__(self, images: Pixels) -> None:
        self._feeds: Iterator[dict[str, np.ndarray]] = iter(
            [{INPUT: images[i : i + 1]} for i in range(len(images))]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._feeds, None)


def quantize_int8(fp32: Path, target: Path, images: Pixels) -> None:
    """Writes `target` from the fp32 model, calibrated on `images` uint8 [N, crop, crop, 3]."""
    with tempfile.TemporaryDirectory(prefix="packshot-int8-") as folder:
        prepared, ranges = Path(folder, "prepared.onnx"), Path(folder, "ranges.json")
        quant_pre_process(fp32, prepared, skip_symbolic_shape=True)
        _calibrate(prepared, ranges, images, Path(folder))
        quantize_static(
            prepared,
            target,
            None,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            calibrate_method=CalibrationMethod.Percentile,
            calibration_cache_path=ranges,
        )
    onnx.checker.check_model(target, full_check=True)


def _calibrate(model: Path, ranges: Path, images: Pixels, folder: Path) -> None:
    calibrator = create_calibrator(
        model,
        augmented_model_path=str(folder / "augmented.onnx"),
        calibrate_method=CalibrationMethod.Percentile,
        extra_options={"percentile": PERCENTILE},
    )
    chunks = range(0, len(images), CHUNK_IMAGES)
    for start in tqdm(chunks, desc="calibrating INT8", unit="chunk"):
        with _silence():
            calibrator.collect_data(PixelReader(images[start : start + CHUNK_IMAGES]))
    with _silence():
        save_tensors_data(calibrator.compute_data(), ranges)


@contextmanager
def _silence() -> Iterator[None]:
    """The calibrator prints its progress to standard output, which is ours."""
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        yield
