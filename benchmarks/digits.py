"""Real images that no recipe was made on, from random weights: scikit-learn's handwritten digits.

python -m benchmarks.digits [an option of the trainer ...]

1,797 grey images of 8x8 pixels, 10 classes, written as they are. The trainer's own split holds out
a tenth for validation and a tenth for testing. Ends with status 1 under 95 % on the test images.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import msgspec
import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from packshot.cores import available_cores

ASKED = 0.95
DARKEST = 16  # of 17 levels of grey


class Result(msgspec.Struct, frozen=True):
    """Of the trainer's checkpoint.json: what is told here."""

    images: int
    accuracy: float
    interval: tuple[float, float]


class Record(msgspec.Struct, frozen=True):
    test: Result


def write_digits(folder: Path) -> int:
    """The images as PNGs, a sub-folder a digit; returns how many."""
    digits = load_digits()
    for number, (levels, label) in enumerate(zip(digits.images, digits.target, strict=True)):
        pixels = np.round(levels * 255 / DARKEST).astype(np.uint8)
        file = folder / str(label) / f"{number:04d}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(file)
    return len(digits.images)


def trained(folder: Path, run: Path, options: list[str]) -> Result:
    command = [sys.executable, "-m", "trainer", "--data", folder, "--run", run]
    command += ["--weights", "none", "--recipe", "auto", *options]
    subprocess.run([str(part) for part in command], check=True)
    return msgspec.json.decode((run / "checkpoint.json").read_bytes(), type=Record).test


def main() -> int:
    with tempfile.TemporaryDirectory() as temporary:
        folder, run = Path(temporary, "digits"), Path(temporary, "run")
        count = write_digits(folder)
        started = time.perf_counter()
        result = trained(folder, run, sys.argv[1:])
        minutes = (time.perf_counter() - started) / 60
    low, high = result.interval
    print(
        f"digits: {result.accuracy:.1%} on {result.images} of {count} images, held out "
        f"(95 % interval {low:.1%} to {high:.1%}); asked for: {ASKED:.0%}\n"
        f"{minutes:.1f} minutes on {available_cores()} cores, "
        f"load {os.getloadavg()[1]:.1f} over the last five"
    )
    return 0 if result.accuracy >= ASKED else 1


if __name__ == "__main__":
    raise SystemExit(main())
