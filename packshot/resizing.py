"""Two ways to resize: a grey level apart, rarely two, so which one it is belongs to the image spec.

Both are the bilinear filter with antialias of Pillow's `Image.resize`, in whole numbers. Pillow's
has 22 bits of each weight; fast_image_resize, a Rust library (https://crates.io/crates/
fast_image_resize, packaged for Python as cykooz-resizer), has as many as 16-bit vector
instructions take, and an eighth of the time.
"""

from functools import cache
from typing import Any, Literal

from PIL import Image

from packshot.errors import InvalidInput

Resizer = Literal["pillow", "fast_image_resize"]
Box = tuple[float, float, float, float]
"""Left, top, right, bottom, in pixels of the image, or parts of them."""

PACKAGE = "cykooz-resizer"


def best_resizer() -> Resizer:
    """The fast one, where it is installed."""
    return "fast_image_resize" if is_installed("fast_image_resize") else "pillow"


def is_installed(resizer: Resizer) -> bool:
    return resizer == "pillow" or _fast() is not None


def check_installed(resizer: Resizer) -> None:
    """Raises InvalidInput."""
    if not is_installed(resizer):
        raise InvalidInput(
            f"this model's images are resized by {resizer}, which is not installed here: pip "
            f"install {PACKAGE}, which has no wheel for Linux but on x86-64; a model that is "
            "trained with --resizer pillow needs none"
        )


def resized(image: Image.Image, size: tuple[int, int], box: Box, resizer: Resizer) -> Image.Image:
    """What `box` shows of an RGB image, in `size` (width, height).

    Raises InvalidInput where the resizer is not installed.
    """
    if resizer == "pillow":
        return image.resize(size, Image.Resampling.BILINEAR, box=box)
    check_installed(resizer)
    fast = _fast()
    left, top, right, bottom = box
    # The sum of its parts may be a trillionth more than the image has, which is refused.
    width, height = min(right - left, image.width - left), min(bottom - top, image.height - top)
    options = fast.ResizeOptions(
        resize_alg=fast.ResizeAlg.convolution(fast.FilterType.bilinear),
        crop_box=fast.CropBox(left, top, width, height),
    )
    view = Image.new(image.mode, size)
    fast.Resizer().resize_pil(image, view, options)  # one for two threads would refuse the second
    return view


@cache
def _fast() -> Any:
    """The package, None where it cannot be imported."""
    try:
        import cykooz_resizer
    except ImportError:
        return None
    return cykooz_resizer
