"""JPEGs like product photographs: 800x800 and 1200x900 pixels, 100 to 250 kB, drawn with a seed."""

import io

import numpy as np
from PIL import Image

SIZES = ((800, 800), (1200, 900))
SHARPNESS = 14  # pixels of the picture per pixel of noise: sets the size of the file
QUALITY = 85


def photos(count: int = 64) -> list[bytes]:
    """Soft shapes in front of a light wall, with grain: what a decoder has to do is what counts."""
    random = np.random.default_rng(0)
    return [_photo(random, *SIZES[number % len(SIZES)]) for number in range(count)]


def _photo(random: np.random.Generator, width: int, height: int) -> bytes:
    wall = np.full((height, width, 3), 235.0)
    spots = random.integers(0, 255, (height // SHARPNESS, width // SHARPNESS, 3), np.uint8)
    texture = np.asarray(Image.fromarray(spots).resize((width, height), Image.Resampling.BICUBIC))
    down, across = np.mgrid[0:height, 0:width]
    centre = (height / 2 - down) ** 2 / (height / 2.4) ** 2 + (width / 2 - across) ** 2 / (
        width / 2.4
    ) ** 2
    inside = (centre < 1)[..., None]
    grain = random.normal(0, 5, (height, width, 1))
    pixels = np.clip(np.where(inside, texture, wall) + grain, 0, 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()
