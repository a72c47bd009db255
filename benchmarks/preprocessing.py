"""Bytes to pixels: `packshot.image` against torchvision's Resize and CenterCrop on Pillow images.

python -m benchmarks.preprocessing
"""

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
from PIL import Image
from torchvision.transforms import v2

from packshot.image import ImageSpec, Pixels, load_pixels
from trainer.sample import draw_picture

SIZES = ((600, 600), (1200, 900), (3000, 2000))
ROUNDS = 15


def photograph(size: tuple[int, int]) -> bytes:
    """A drawn product with the grain of a camera, as JPEG."""
    drawn = np.asarray(draw_picture("shoe", 0, 1).resize(size), np.int16)
    grain = np.random.default_rng(0).normal(0, 4, drawn.shape)
    image = Image.fromarray((drawn + grain).clip(0, 255).astype(np.uint8))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def torchvision_pixels(encoded: bytes) -> Pixels:
    image = Image.open(io.BytesIO(encoded)).convert("RGB")
    return np.asarray(v2.CenterCrop(224)(v2.Resize(256)(image)))


def packshot_pixels(encoded: bytes) -> Pixels:
    return load_pixels(encoded, ImageSpec())


def milliseconds(preprocess: Callable[[bytes], Pixels], encoded: bytes) -> float:
    started = time.perf_counter()
    preprocess(encoded)
    return (time.perf_counter() - started) * 1000


def main() -> None:
    print("size        bytes    torchvision ms  packshot ms  ratio  mean / max difference")
    for size in SIZES:
        encoded = photograph(size)
        # Alternating, so that both see the same weather on a shared machine.
        rounds = [
            (milliseconds(torchvision_pixels, encoded), milliseconds(packshot_pixels, encoded))
            for _ in range(ROUNDS)
        ]
        theirs, ours = (statistics.median(times) for times in zip(*rounds, strict=True))
        difference = np.abs(
            torchvision_pixels(encoded).astype(int) - packshot_pixels(encoded).astype(int)
        )
        print(
            f"{size[0]:4d}x{size[1]:<5d} {len(encoded):8d} {theirs:14.1f} {ours:12.1f} "
            f"{theirs / ours:6.2f}  {difference.mean():.3f} / {difference.max()}"
        )


if __name__ == "__main__":
    main()
