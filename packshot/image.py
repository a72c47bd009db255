"""Encoded bytes to the pixels that the network sees: the only such code in packshot.

Training's evaluation, calibration, golden samples and the server all call `load_pixels` with the
`ImageSpec` that the bundle carries, so the answer served is computed from the pixels that the
accuracy was measured on. The arithmetic is that of torchvision's transforms on Pillow images:

    fit crop   Resize(resize_short_side), CenterCrop(crop), fused into one resize of a box
    fit pad    Resize(None, max_size=crop), and the colour `padding` around it up to crop x crop
"""

import math
from collections.abc import Sequence
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFile

from packshot.errors import ImageError
from packshot.headers import MAX_EXIF_BYTES, Metered, check_jpeg, check_png
from packshot.resizing import Resizer, resized
from packshot.tiff import check_tiff

Pixels = npt.NDArray[np.uint8]
"""uint8 [height, width, 3], RGB."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff"})
"""File names that are looked at in a folder, in lower case."""

JPEGS = ("JPEG", "MPO")  # MPO: a JPEG with further pictures behind it, as phones write them
# Pillow unpacks a run-length-encoded BMP in Python: half a second for so many pixels.
RUN_LENGTHS = (1, 2)
MAX_RUN_LENGTH_PIXELS = 1 << 21

GREY_STEPS = {"L;2": 85, "L;4": 17}  # of a PNG's 2 and 4 bits in the 8 that Pillow makes of them

EXIF_ORIENTATION = 0x0112
TURNS = {  # what makes a picture of an EXIF orientation upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


Fit = Literal["crop", "pad"]


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How an image becomes the network's input. Part of the bundle: change it, and retrain.

    The fixed choices are spelled out, so that another implementation can be checked against them,
    and a bundle that needs another choice is refused. Raises ValueError for impossible sizes.

    `fit` crop: the network sees the centre, and of a long picture not its ends. `fit` pad: it sees
    the whole picture, the long side `crop` pixels, centred on a square of the colour `padding`;
    `resize_short_side` then plays no part. Records without the field mean crop, and without a
    `resizer` (`packshot.resizing`) pillow.
    """

    decoder: Literal["pillow"] = "pillow"
    orientation: Literal["exif"] = "exif"
    colour: Literal["RGB"] = "RGB"
    alpha_over: tuple[int, int, int] = (255, 255, 255)
    frame: Literal["first"] = "first"
    fit: Fit = "crop"
    padding: tuple[int, int, int] = (255, 255, 255)  # a packshot's background is light
    resize_short_side: int = 256
    crop: int = 224
    interpolation: Literal["bilinear"] = "bilinear"
    antialias: Literal[True] = True
    resizer: Resizer = "pillow"
    # JPEGs are decoded at 1/2, 1/4 or 1/8 scale as long as the short side keeps this many pixels
    # (with pad that of the padded square, which is the picture's long side): a third of the time
    # on large photographs, a grey level or two away (PIL.Image.Image.draft). 256 in the place of
    # 512 saves two fifths also of 600 to 1000 pixels, and is further away.
    draft_short_side: int | None = 512
    # Constants of the ONNX graph, recorded for readers; nothing outside the graph applies them.
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        if not 1 <= self.crop <= self.resize_short_side:
            raise ValueError(f"crop {self.crop} of a short side of {self.resize_short_side} pixels")
        if self.draft_short_side is not None and self.draft_short_side < self.resize_short_side:
            raise ValueError(
                f"draft_short_side {self.draft_short_side} is below resize_short_side "
                f"{self.resize_short_side}: pictures would be enlarged"
            )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of one image: (height, width, channels)."""
        return (self.crop, self.crop, 3)

    @property
    def geometry(self) -> str:
        """In words, for people."""
        if self.fit == "pad":
            return (
                f"long side {self.crop}, centred on a {self.crop}x{self.crop} square of RGB "
                f"{self.padding}, {self._filter}"
            )
        return f"short side {self.resize_short_side}, crop {self.crop}, {self._filter}"

    @property
    def _filter(self) -> str:
        by = "" if self.resizer == "pillow" else f" by {self.resizer}"
        return f"{self.interpolation}{by}"


class ImageLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What is refused before any memory is spent on it."""

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000


def load_pixels(encoded: bytes, spec: ImageSpec, limits: ImageLimits = ImageLimits()) -> Pixels:
    """The network's input for one encoded image: uint8 [crop, crop, 3].

    Raises ImageError for bytes that are no image, damaged, too large or of an unsupported kind.
    """
    with open_image(encoded, limits) as image:
        rgb, size = decode_rgb(image, spec, spec.draft_short_side)
    view = _padded(rgb, size, spec) if spec.fit == "pad" else _cropped(rgb, size, spec)
    return np.asarray(view)


def _cropped(rgb: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    # The box comes from the original size: a drafted one is rounded up and would shift the view.
    across, down = rgb.width / size[0], rgb.height / size[1]
    left, top, right, bottom = view_box(size, spec)
    box = (left * across, top * down, right * across, bottom * down)
    return resized(rgb, (spec.crop, spec.crop), box, spec.resizer)


def _padded(rgb: Image.Image, size: tuple[int, int], spec: ImageSpec) -> Image.Image:
    left, top, right, bottom = picture_box(size, spec)
    view = Image.new("RGB", (spec.crop, spec.crop), spec.padding)
    # A drafted picture is rounded up to whole pixels: of a narrow one that is a good part of it.
    scale = round(max(size) / max(rgb.size))
    box = (0.0, 0.0, size[0] / scale, size[1] / scale)
    whole = resized(rgb, (right - left, bottom - top), box, spec.resizer)
    view.paste(whole, (left, top))
    return view


def open_image(encoded: bytes, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Reads the header only. Raises ImageError."""
    if not encoded:
        raise ImageError("empty", "the image has 0 bytes")
    if len(encoded) > limits.max_bytes:
        raise ImageError(
            "too_many_bytes",
            f"{len(encoded)} bytes; the limit is {limits.max_bytes}: send a smaller file",
        )
    _check_header(encoded, limits)
    file = Metered(encoded)
    try:
        image = Image.open(file, formats=FORMATS)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise ImageError(
            "too_many_pixels", f"{error} (packshot's limit: {limits.max_pixels})"
        ) from error
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        raise ImageError(
            "not_an_image", f"not an image in any of the formats {', '.join(FORMATS)}"
        ) from error
    width, height = image.size
    most = limits.max_pixels
    if image.format == "BMP" and image.info["compression"] in RUN_LENGTHS:
        most = min(most, MAX_RUN_LENGTH_PIXELS)
        file.reads_left += 2 * width * height  # for a run of one pixel
    if width * height > most:
        message = f"{width}x{height} pixels; the limit is {most}: send a smaller image"
        raise ImageError("too_many_pixels", message)
    if image.format == "PNG":
        _clear_as_stored(image)
    return image


def _check_header(encoded: bytes, limits: ImageLimits) -> None:
    """Whatever makes Pillow or a library work or allocate beyond its bytes and pixels."""
    if encoded.startswith(b"\xff\xd8"):
        check_jpeg(encoded)
    elif encoded.startswith(b"\x89PNG"):
        check_png(encoded)
    elif encoded.startswith((b"II", b"MM")):
        check_tiff(encoded, limits.max_pixels)


def read_pixels(raw: bytes, spec: ImageSpec) -> Pixels:
    """Pixels sent as they are: exactly crop x crop x 3 bytes, row-major RGB. Raises ImageError."""
    expected = math.prod(spec.shape)
    if len(raw) != expected:
        message = f"{len(raw)} bytes of pixels; expected {expected} (uint8 {list(spec.shape)}, RGB)"
        raise ImageError("wrong_size", message)
    return np.frombuffer(raw, np.uint8).reshape(spec.shape)


def decode_rgb(
    image: Image.Image, spec: ImageSpec, draft_short_side: int | None
) -> tuple[Image.Image, tuple[int, int]]:
    """The first frame, upright, as 8-bit RGB with alpha laid over `spec.alpha_over`.

    A JPEG may come at reduced scale, as long as its short side (with `fit` pad its long one) keeps
    `draft_short_side` pixels; the second value is the upright size (width, height) before that.
    Raises ImageError.
    """
    stored_size = image.size
    try:
        if draft_short_side is not None and image.format in JPEGS:
            kept = max(stored_size) if spec.fit == "pad" else min(stored_size)
            scale = draft_short_side / kept
            width, height = (math.ceil(side * scale) for side in stored_size)
            image.draft(None, (width, height))
        # Before EXIF is looked at: with some formats that decodes too, and hides the faults.
        image.load()
        turn = orientation(image)
        rgb = _rgb(image.transpose(TURNS[turn]) if turn in TURNS else image, spec)
    except (ImageError, MemoryError):
        raise
    except Exception as error:
        # Decoders raise whatever their parsing runs into (OSError, SyntaxError, struct.error,
        # AssertionError, ...): each means the same to the sender of these bytes.
        message = f"the {image.format} image cannot be decoded"
        raise ImageError("damaged", message) from error
    return rgb, stored_size[::-1] if turn >= 5 else stored_size


def orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 (upright) where it is missing or its block is malformed.

    Raises ImageError for a block of more bytes than Pillow should make objects of.
    """
    if len(image.info.get("exif", b"")) > MAX_EXIF_BYTES:
        message = f"more than {MAX_EXIF_BYTES} bytes of EXIF: save it without"
        raise ImageError("unsupported", message)
    try:
        value = image.getexif().get(EXIF_ORIENTATION, 1)
    except Exception:
        # A malformed EXIF block says nothing; the pixels are fine and viewers show them upright.
        return 1
    return value if value in range(1, 9) else 1


def _rgb(image: Image.Image, spec: ImageSpec) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith("I"):
        return _rgb_of_deep_grey(image, spec)
    if image.mode == "F":
        raise ImageError("unsupported", "floating-point pixels have no agreed range: use 8 bits")
    if image.has_transparency_data:
        # No copy more than is needed: of an animated WebP the decoder holds two canvases beside.
        with_alpha = image if image.mode == "RGBA" else image.convert("RGBA")
        opaque = Image.new("RGB", image.size, spec.alpha_over)
        opaque.paste(with_alpha, mask=with_alpha)
        return opaque
    return image.convert("RGB")


def _rgb_of_deep_grey(image: Image.Image, spec: ImageSpec) -> Image.Image:
    values = np.asarray(image)
    grey = Image.fromarray(_eight_bits(values)).convert("RGB")
    clear = image.info.get("transparency")
    if not isinstance(clear, int):
        return grey
    # Compared before the conversion: neighbouring levels that become the same are not clear.
    opaque = Image.new("RGB", image.size, spec.alpha_over)
    opaque.paste(grey, mask=Image.fromarray((values != clear).astype(np.uint8) * 255))
    return opaque


def _clear_as_stored(image: ImageFile.ImageFile) -> None:
    """Puts a PNG's transparent colour on the scale on which Pillow decodes: it leaves it as it is.

    Of 16-bit colours Pillow keeps the upper bytes, so that those are compared.
    """
    clear, stored = image.info.get("transparency"), image.tile[0][3] if image.tile else None
    if isinstance(clear, int) and stored in GREY_STEPS:
        image.info["transparency"] = clear * GREY_STEPS[stored]
    elif isinstance(clear, tuple) and stored == "RGB;16B":
        image.info["transparency"] = tuple(level >> 8 for level in clear)


def stack(images: Sequence[Pixels]) -> npt.NDArray[np.uint8]:
    """A batch, uint8 [N, crop, crop, 3]."""
    return np.stack(images)


def view_box(size: tuple[int, int], spec: ImageSpec) -> tuple[float, float, float, float]:
    """The part (left, top, right, bottom) of an upright image of `size` that a crop shows.

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


def picture_box(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int, int, int]:
    """Where in the view, in pixels (left, top, right, bottom), `fit` pad puts an image of `size`.

    torchvision's arithmetic: the long side becomes `crop`, the short one is truncated to whole
    pixels, here to one at least; where the padding is of an odd width, the first half has less.
    """
    width, height = size
    across = spec.crop if width >= height else max(1, int(spec.crop * width / height))
    down = spec.crop if height >= width else max(1, int(spec.crop * height / width))
    left, top = (spec.crop - across) // 2, (spec.crop - down) // 2
    return (left, top, left + across, top + down)


def _eight_bits(values: npt.NDArray[np.generic]) -> Pixels:
    """16-bit grey (also when it comes in 32-bit cells) to 8 bits, rounded to nearest."""
    if values.dtype.itemsize > 2:
        values = np.clip(values, 0, 65535)
    levels = ((np.arange(65536) + 128) // 257).astype(np.uint8)
    return levels[values.astype(np.uint16)]
