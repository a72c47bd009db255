"""Bytes to pixels: `packshot.image` against torchvision's Resize and CenterCrop on Pillow images.

Single-threaded, in turns, by the resizer that training chooses. The two see the same picture: at
most three grey levels lie between them.

    python -m benchmarks --only preprocessing
"""

import io
import statistics
import time
from collections.abc import Callable

import msgspec
import numpy as np
from PIL import Image
from torchvision.transforms import v2

from benchmarks.figures import Figure, Findings
from benchmarks.options import Options
from packshot.image import ImageSpec, Pixels, load_pixels
from packshot.resizing import best_resizer
from trainer.sample import draw_picture

SIZES = ((600, 600), (1200, 900), (3000, 2000))
SPEC = ImageSpec(resizer=best_resizer())
TURNS = 3  # of a round; the medians count


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
    return load_pixels(encoded, SPEC)


def milliseconds(preprocess: Callable[[bytes], Pixels], encoded: bytes) -> float:
    started = time.perf_counter()
    preprocess(encoded)
    return (time.perf_counter() - started) * 1000


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """Of one size of picture."""

    torchvision_ms: float
    packshot_ms: float


def compared(encoded: bytes) -> Round:
    turns = [
        (milliseconds(torchvision_pixels, encoded), milliseconds(packshot_pixels, encoded))
        for _ in range(TURNS)
    ]
    theirs, ours = (statistics.median(times) for times in zip(*turns, strict=True))
    return Round(torchvision_ms=theirs, packshot_ms=ours)


def measure(options: Options) -> Findings:
    pictures = {f"{width}x{height}": photograph((width, height)) for width, height in SIZES}
    for name, encoded in pictures.items():
        apart = torchvision_pixels(encoded).astype(int) - packshot_pixels(encoded).astype(int)
        print(
            f"{name}, {len(encoded)} bytes: {abs(apart).mean():.3f} grey levels apart in the mean, "
            f"{abs(apart).max()} at most",
            flush=True,
        )
    rounds = [
        {name: compared(encoded) for name, encoded in pictures.items()}
        for _ in range(options.rounds_or())
    ]
    return Findings(
        figures=tuple(
            Figure(
                name=f"{name} to pixels: torchvision / packshot, time", better="higher",
                rounds=tuple(
                    found[name].torchvision_ms / found[name].packshot_ms for found in rounds
                ),
            )
            for name in pictures
        ),
        rounds=tuple(rounds),
    )  # fmt: skip
