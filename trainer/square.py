"""A window on the padded square, for training views: the square itself is never made.

That of a panorama would fill the memory.
"""

from typing import NamedTuple

from PIL import Image

from packshot.image import ImageSpec
from packshot.resizing import resized

Box = tuple[int, int, int, int]
"""Left, top, right, bottom, in pixels."""


def square_view(rgb: Image.Image, box: Box, size: int, spec: ImageSpec) -> Image.Image:
    """A `box` of the padded square that the image is centred on, in size x size pixels."""
    view = Image.new("RGB", (size, size), spec.padding)
    side = max(rgb.size)
    across = _overlap((side - rgb.width) // 2, rgb.width, box[0], box[2], size)
    down = _overlap((side - rgb.height) // 2, rgb.height, box[1], box[3], size)
    if across and down:
        source = (across.start, down.start, across.end, down.end)
        shape = (across.pixels, down.pixels)
        view.paste(resized(rgb, shape, source, spec.resizer), (across.at, down.at))
    return view


class Overlap(NamedTuple):
    """What a window shows of the image, along one axis."""

    start: int  # in the image's pixels, as is `end`
    end: int
    at: int  # the first pixel of the view that shows it
    pixels: int  # of the view


def _overlap(offset: int, length: int, low: int, high: int, size: int) -> Overlap | None:
    """Of an image `offset` to `offset + length` in a window `low` to `high` of `size` pixels."""
    start, end = max(offset, low), min(offset + length, high)
    if start >= end:
        return None
    scale = size / (high - low)
    at = min(size - 1, round((start - low) * scale))
    pixels = max(1, round((end - low) * scale) - at)
    return Overlap(start - offset, end - offset, at, pixels)
