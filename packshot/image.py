"""Encoded bytes to the pixels that the network sees: the only such code in packshot.

Training's evaluation, calibration, golden samples and the server all call `load_pixels` with the
`ImageSpec` that the bundle carries, so the answer served is computed from the pixels that the
accuracy was measured on. The arithmetic is that of torchvision's Resize and CenterCrop on Pillow
images, with resize and crop fused into one `Image.resize(box=...)`.
"""

import io
import math
from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from packshot.errors import ImageError

Pixels = npt.NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
EXIF_ORIENTATION = 0x0112


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the network's input. Part of the bundle: change it, and retrain.

    The fixed choices are spelled out, so that another implementation can be checked against them.
    """

    decoder: str = "pillow"
    orientation: str = "exif"
    colour: str = "RGB"
    alpha_over: tuple[int, int, int] = (255, 255, 255)
    frame: str = "first"
    resize_short_side: int = 256
    crop: int = 224
    interpolation: str = "bilinear"
    antialias: bool = True
    # JPEGs are decoded at 1/2, 1/4 or 1/8 scale as long as the short side keeps this many pixels:
    # half the time on large photographs, at most one grey level away (PIL.Image.Image.draft).
    draft_short_side: int | None = 512
    # Constants of the ONNX graph, recorded for readers; nothing outside the graph applies them.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (height, width, channels)."""
        return (self.crop, self.crop, 3)


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused before any memory is spent on it."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000


def load_pixels(encoded: bytes, spec: ImageSpec, limits: ImageLimits = ImageLimits()) -> Pixels:
    """The network's input for one encoded image: uint8 [crop, crop, 3].

    Raises ImageError for bytes that are no image, damaged, too large or of an unsupported kind.
    """
    with open_image(encoded, limits) as image:
        turned = orientation(image) >= 5
        upright_size = image.size[::-1] if turned else image.size
        _decode(image, spec.draft_short_side)
        rgb = upright_rgb(image, spec)
    # The box comes from the original size: a drafted one is rounded up and would shift the view.
    across, down = rgb.width / upright_size[0], rgb.height / upright_size[1]
    left, top, right, bottom = view_box(upright_size, spec)
    box = (left * across, top * down, right * across, bottom * down)
    view = rgb.resize((spec.crop, spec.crop), Image.Resampling.BILINEAR, box=box)
    return np.asarray(view)


def open_image(encoded: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Reads the header only. Raises ImageError."""
    if not encoded:
        raise ImageError("empty", "the image has 0 bytes")
    if len(encoded) > limits.max_bytes:
        raise ImageError(
            "too_many_bytes",
            f"{len(encoded)} bytes; the limit is {limits.max_bytes}: send a smaller file",
        )
    try:
        image = Image.open(io.BytesIO(encoded), formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            "too_many_pixels", f"{error} (packshot's limit: {limits.max_pixels})"
        ) from error
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(
            "not_an_image", f"not an image in any of the formats {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    if width * height > limits.max_pixels:
        message = f"{width}x{height} pixels; the limit is {limits.max_pixels}: send a smaller image"
        raise ImageError("too_many_pixels", message)
    return image


def read_pixels(raw: bytes, spec: ImageSpec) -> Pixels:
    """Pixels sent as they are: exactly crop x crop x 3 bytes, row-major RGB. Raises ImageError."""
    expected = math.prod(spec.shape)
    if len(raw) != expected:
        message = f"{len(raw)} bytes of pixels; expected {expected} (uint8 {list(spec.shape)}, RGB)"
        raise ImageError("wrong_size", message)
    return np.frombuffer(raw, np.uint8).reshape(spec.shape)


def upright_rgb(image: Image.Image, spec: ImageSpec) -> Image.Image:
    """The first frame, turned by its EXIF orientation, 8-bit RGB, alpha over `alpha_over`."""
    if orientation(image) != 1:
        image = ImageOps.exif_transpose(image)
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "F":
        raise ImageError(
            "unsupported", "floating-point pixels have no agreed range: convert to 8 bits"
        )
    if image.has_transparency_data:
        with_alpha = image.convert("RGBA")
        opaque = Image.new("RGB", image.size, spec.alpha_over)
        opaque.paste(with_alpha, mask=with_alpha.getchannel("A"))
        return opaque
    return image.convert("RGB")


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where it is missing or its block is malformed."""
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # A malformed EXIF block says nothing; the pixels are fine and viewers show them upright.
        return 1
    return value if value in range(1, 9) else 1


def view_box(size: tuple[int, int], spec: ImageSpec) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of an upright image of `size` that the network sees.

    torchvision's arithmetic: the short side becomes `resize_short_side`, the long side is truncated
    to whole pixels, the crop's offset is rounded half to even.
    """
    width, height = size
    short = spec.resize_short_side
    resized_width = short if width <= height else int(short * width / height)
    resized_height = short if height <= width else int(short * height / width)
    left = int(round((resized_width - spec.crop) / 2.0))
    top = int(round((resized_height - spec.crop) / 2.0))
    across, down = width / resized_width, height / resized_height
    return (left * across, top * down, (left + spec.crop) * across, (top + spec.crop) * down)


def _decode(image: Image.Image, draft_short_side: int | None) -> None:
    try:
        if draft_short_side is not None and image.format in ("JPEG", "MPO"):
            width, height = image.size
            scale = draft_short_side / min(width, height)
            image.draft(None, (math.ceil(width * scale), math.ceil(height * scale)))
        image.load()
    except MemoryError:
        raise
    except Exception as error:
        # Decoders raise whatever their parsing runs into (OSError, SyntaxError, struct.error,
        # zlib.error, ...): each means the same to the sender of these bytes.
        raise ImageError("damaged", f"damaged {image.format} image: {error}") from error


def _eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """16-bit grey (also when it comes in 32-bit cells) to 8 bits, rounded to nearest."""
    grey = np.clip(values.astype(np.int64), 0, 65535)
    return ((grey + 128) // 257).astype(np.uint8)


def stack(images: Sequence[Pixels]) -> npt.NDArray[np.uint8]:
    """A batch, uint8 [N, crop, crop, 3]."""
    return np.stack(images)
