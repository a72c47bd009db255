"""Preprocessing: equal to torchvision's, and every kind of image that photographers send."""

import io
import struct
import zlib
from typing import get_args

import msgspec
import numpy as np
import pytest
from PIL import Image
from tiny import encoded, jpeg
from torchvision.transforms import v2

from packshot.errors import ImageError
from packshot.image import (
    ImageLimits,
    ImageSpec,
    decode_rgb,
    load_pixels,
    open_image,
    picture_box,
    read_pixels,
    view_box,
)
from packshot.resizing import Resizer

SPEC = ImageSpec()
PAD = ImageSpec(fit="pad")
RED = (230, 20, 20)


def photo(size: tuple[int, int], seed: int = 0) -> Image.Image:
    """Smooth structure and fine noise: what resampling errors show on."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 255, (9, 11, 3), np.uint8)).resize(size)
    noise = rng.integers(-20, 20, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def reference(content: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(content)).convert("RGB")
    return np.asarray(v2.CenterCrop(224)(v2.Resize(256)(image)))


def differences(content: bytes, resizer: Resizer) -> np.ndarray:
    spec = ImageSpec(resizer=resizer)
    return np.abs(load_pixels(content, spec).astype(int) - reference(content).astype(int))


SIZES = [(224, 224), (300, 260), (257, 801), (640, 480), (333, 500), (1000, 999), (20, 31)]
each_resizer = pytest.mark.parametrize("resizer", get_args(Resizer))


@each_resizer
@pytest.mark.parametrize("size", SIZES)
def test_is_torchvisions_resize_and_crop_within_one_level(size, resizer):
    assert differences(encoded(photo(size), "PNG"), resizer).max() <= 1
    assert differences(encoded(photo(size), "JPEG", quality=90), resizer).max() <= 1


@each_resizer
@pytest.mark.parametrize("size", [(1100, 1500), (2600, 1801)])
def test_decoding_large_jpegs_at_half_scale_stays_close(size, resizer):
    apart = differences(encoded(photo(size), "JPEG", quality=90), resizer)
    assert apart.mean() < 1
    assert apart.max() <= 30


def test_view_box_is_that_of_the_original_size():
    assert view_box((256, 256), SPEC) == (16, 16, 240, 240)
    left, top, right, bottom = view_box((512, 1000), SPEC)
    assert (left, right) == (32, 480)
    assert (top, bottom) == (pytest.approx(138 * 2), pytest.approx(362 * 2))


def padded_reference(content: bytes, padding: int = 255) -> np.ndarray:
    """torchvision's; its CenterCrop pads with zeros, so that it gets the negative."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    resized = np.asarray(v2.Resize(None, max_size=224)(image))
    return padding - np.asarray(v2.CenterCrop(224)(Image.fromarray(padding - resized)))


def padded_differences(content: bytes, resizer: Resizer) -> np.ndarray:
    spec = ImageSpec(fit="pad", resizer=resizer)
    return np.abs(load_pixels(content, spec).astype(int) - padded_reference(content))


@each_resizer
@pytest.mark.parametrize("size", [*SIZES, (1000, 20), (19, 950), (1, 4), (1, 1), (3, 224)])
def test_padding_is_torchvisions_resize_of_the_long_side_on_a_white_square(size, resizer):
    assert padded_differences(encoded(photo(size), "PNG"), resizer).max() <= 1
    assert padded_differences(encoded(photo(size), "JPEG", quality=90), resizer).max() <= 1


@each_resizer
@pytest.mark.parametrize("size", [(1100, 1500), (2600, 1801), (4200, 90)])
def test_padding_a_large_jpeg_decoded_at_reduced_scale_stays_close(size, resizer):
    apart = padded_differences(encoded(photo(size), "JPEG", quality=90), resizer)
    assert apart.mean() < 1
    assert apart.max() <= 30


def decoded_size(size: tuple[int, int], spec: ImageSpec) -> tuple[int, int]:
    with open_image(encoded(photo(size), "JPEG")) as image:
        return decode_rgb(image, spec, spec.draft_short_side)[0].size


def test_reduced_scale_keeps_the_side_that_is_resized():
    assert decoded_size((1023, 4096), SPEC) == (1023, 4096)
    assert decoded_size((1024, 4096), SPEC) == (512, 2048)
    assert decoded_size((1024, 4096), PAD) == (128, 512)
    assert decoded_size((1000, 1023), PAD) == (1000, 1023)


def test_a_smaller_draft_halves_smaller_pictures_and_never_enlarges():
    cheap = ImageSpec(draft_short_side=256)
    assert decoded_size((511, 700), cheap) == (511, 700)
    assert decoded_size((512, 700), cheap) == (256, 350)
    with pytest.raises(ValueError, match="draft_short_side 200 is below resize_short_side 256"):
        ImageSpec(draft_short_side=200)


def test_padding_shows_the_whole_picture_whatever_its_shape():
    assert picture_box((300, 300), PAD) == (0, 0, 224, 224)
    assert picture_box((400, 300), PAD) == (0, 28, 224, 196)
    assert picture_box((300, 401), PAD) == (28, 0, 195, 224)
    assert picture_box((1, 9000), PAD) == (111, 0, 112, 224)
    assert picture_box((9000, 1), PAD) == (0, 111, 224, 112)
    ends = Image.new("RGB", (1000, 100), (20, 230, 20))
    ends.paste(RED, (0, 0, 100, 100))
    ends.paste(RED, (900, 0, 1000, 100))
    content = encoded(ends, "PNG")
    seen = load_pixels(content, PAD)
    assert seen[112, 5].tolist() == seen[112, -5].tolist() == list(RED)
    assert seen[5, 112].tolist() == seen[-5, 112].tolist() == [255, 255, 255]
    assert not (load_pixels(content, SPEC) == RED).all(axis=2).any(), "a crop cuts them off"
    dark = ImageSpec(fit="pad", padding=(1, 2, 3))
    assert load_pixels(content, dark)[5, 112].tolist() == [1, 2, 3]


def test_records_from_before_a_field_mean_its_default_and_of_another_value_are_refused():
    record = msgspec.to_builtins(SPEC)
    for name in ("fit", "padding", "resizer"):
        del record[name]
    assert msgspec.convert(record, ImageSpec) == SPEC
    with pytest.raises(msgspec.ValidationError, match="stretch"):
        msgspec.convert({"fit": "stretch"}, ImageSpec)
    with pytest.raises(msgspec.ValidationError, match="opencv"):
        msgspec.convert({"resizer": "opencv"}, ImageSpec)


def test_a_spec_says_in_words_what_it_does():
    assert SPEC.geometry == "short side 256, crop 224, bilinear"
    assert PAD.geometry == (
        "long side 224, centred on a 224x224 square of RGB (255, 255, 255), bilinear"
    )


def colour_of(content: bytes) -> tuple[int, ...]:
    return tuple(load_pixels(content, SPEC)[112, 112].tolist())


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("RGB", "JPEG"), ("RGB", "PNG"), ("RGB", "WEBP"), ("RGB", "BMP"), ("RGB", "TIFF"),
        ("P", "GIF"), ("P", "PNG"), ("CMYK", "JPEG"), ("CMYK", "TIFF"), ("RGBA", "PNG"),
    ],
)  # fmt: skip
def test_kinds_of_colour_images(mode, kind):
    image = Image.new("RGB", (300, 300), RED).convert(mode, palette=Image.Palette.ADAPTIVE)
    assert np.abs(np.array(colour_of(encoded(image, kind))) - RED).max() <= 4


@pytest.mark.parametrize(
    ("mode", "kind"), [("L", "JPEG"), ("L", "PNG"), ("1", "PNG"), ("LA", "PNG")]
)
def test_grey_images(mode, kind):
    image = Image.new("L", (300, 300), 255).convert(mode)
    assert colour_of(encoded(image, kind)) == (255, 255, 255)


def test_16_bit_grey_keeps_its_brightness():
    image = Image.fromarray(np.full((300, 300), 128 * 257, np.uint16))
    assert colour_of(encoded(image, "PNG")) == (128, 128, 128)
    assert colour_of(encoded(image, "TIFF")) == (128, 128, 128)


def test_32_bit_integer_grey_is_read_as_16_bit():
    image = Image.fromarray(np.full((300, 300), 128 * 257, np.int32))
    assert colour_of(encoded(image, "TIFF")) == (128, 128, 128)


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (300, 300), (0, 0, 0, 0))
    assert colour_of(encoded(clear, "PNG")) == (255, 255, 255)
    half = Image.new("RGBA", (300, 300), (0, 0, 0, 128))
    assert colour_of(encoded(half, "PNG")) == (127, 127, 127)
    palette = Image.new("P", (300, 300), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    assert colour_of(encoded(palette, "PNG", transparency=0)) == (255, 255, 255)


GREY, COLOUR, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 4, 6
WHITE = (255, 255, 255)


def png(depth: int, kind: int, levels: list[int], clear: list[int] | None = None) -> bytes:
    """256x256 pixels that are all `levels`, `depth` bits each; `clear` stands for no colour."""
    side = 256
    bits = "".join(f"{level:0{depth}b}" for level in levels) * side
    row = b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    chunks = [(b"IHDR", struct.pack(">LLBBBBB", side, side, depth, kind, 0, 0, 0))]
    if clear is not None:
        chunks.append((b"tRNS", struct.pack(f">{len(clear)}H", *clear)))
    chunks += [(b"IDAT", zlib.compress(row * side)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">L", len(data)) + name + data + struct.pack(">L", zlib.crc32(name + data))
        for name, data in chunks
    )


@pytest.mark.parametrize(
    ("depth", "kind", "levels", "other", "seen"),
    [
        (1, GREY, [0], [1], 0), (2, GREY, [2], [1], 170), (4, GREY, [5], [15], 85),
        (8, GREY, [9], [10], 9), (16, GREY, [0], [1], 0), (16, GREY, [5000], [5001], 19),
        (8, COLOUR, [9, 8, 7], [9, 8, 8], (9, 8, 7)),
        (16, COLOUR, [0x1234, 0x5678, 0x9ABC], [0x1134, 0x5678, 0x9ABC], (0x12, 0x56, 0x9A)),
        (16, COLOUR, [0x34FF, 0x78FF, 0xBCFF], [0x1234, 0x5678, 0x9ABC], (0x34, 0x78, 0xBC)),
    ],
)  # fmt: skip
def test_a_transparent_colour_is_laid_over_white_at_any_depth(depth, kind, levels, other, seen):
    opaque = seen if isinstance(seen, tuple) else (seen,) * 3
    assert colour_of(png(depth, kind, levels)) == opaque
    assert colour_of(png(depth, kind, levels, clear=other)) == opaque
    assert colour_of(png(depth, kind, levels, clear=levels)) == WHITE


def test_a_cut_out_in_16_bit_grey_keeps_its_shape():
    levels = np.zeros((300, 300), np.uint16)
    levels[100:200, 100:200] = 200 * 257
    content = encoded(Image.fromarray(levels), "PNG", transparency=0)
    pixels = load_pixels(content, SPEC)
    assert pixels[112, 112].tolist() == [200] * 3
    assert pixels[5, 5].tolist() == [255] * 3


@pytest.mark.parametrize(("kind", "levels"), [(GREY_ALPHA, [0, 0]), (COLOUR_ALPHA, [0, 0, 0, 0])])
@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_channels_are_laid_over_white_at_any_depth(depth, kind, levels):
    assert colour_of(png(depth, kind, levels)) == WHITE
    solid = [*levels[:-1], 2**depth - 1]
    assert colour_of(png(depth, kind, solid)) == (0, 0, 0)


@pytest.mark.parametrize("clear", [b"\0", b"\0\x80"])  # one place, or a level for each
def test_transparent_places_of_a_palette_are_laid_over_white(clear):
    image = Image.new("P", (300, 300), 0)
    image.putpalette([0, 0, 0, 10, 20, 30])
    assert colour_of(encoded(image, "PNG", transparency=clear)) == WHITE


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (300, 300), colour) for colour in (RED, (20, 20, 230))]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(np.array(colour_of(content)) - RED).max() <= 4


@pytest.mark.parametrize("spec", [SPEC, PAD], ids=["crop", "pad"])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(2, 9))
def test_exif_orientation_is_applied(orientation, kind, spec):
    upright = photo((600, 320))
    stored = upright.transpose(UNDONE_BY[orientation])
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 95}}.get(kind, {})
    turned = load_pixels(encoded(stored, kind, exif=exif, **options), spec).astype(int)
    expected = load_pixels(encoded(upright, kind, **options), spec).astype(int)
    assert np.abs(turned - expected).mean() < (3 if kind == "JPEG" else 0.01)


# What a camera that was held so stores: the turn that each orientation asks to be undone.
UNDONE_BY = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def test_odd_exif_tags_do_not_matter():
    # Orientation 6 beside a camera's name (0x010F) of type double, as broken writers leave it.
    tags = struct.pack(">HHIIHHIHH", 0x010F, 12, 1, 38, 0x0112, 3, 1, 6, 0)
    exif = b"Exif\0\0MM\0*" + struct.pack(">IH", 8, 2) + tags + bytes(4) + struct.pack(">d", 1.5)
    content = encoded(Image.new("RGB", (300, 300), RED), "JPEG", exif=exif)
    assert np.abs(np.array(colour_of(content)) - RED).max() <= 4


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_malformed_exif_is_ignored():
    content = encoded(Image.new("RGB", (300, 300), RED), "JPEG", exif=b"Exif\0\0MM\0*garbage")
    assert np.abs(np.array(colour_of(content)) - RED).max() <= 4


def refusal(content: bytes, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_pixels(content, SPEC, ImageLimits(**limits))
    return caught.value


def test_refusals_name_the_fault():
    assert refusal(b"").reason == "empty"
    assert refusal(b"hello, I am a text file").reason == "not_an_image"
    assert refusal(encoded(photo((300, 300)), "JPEG")[:5000]).reason == "damaged"
    assert refusal(jpeg(RED), max_bytes=100).reason == "too_many_bytes"
    assert "90000" in str(refusal(jpeg(RED, (300, 301)), max_pixels=90000))
    assert refusal(encoded(Image.new("F", (300, 300)), "TIFF")).reason == "unsupported"


@pytest.mark.parametrize("side", [10_000, 40_000])
def test_a_decompression_bomb_is_refused_before_it_is_decoded(side):
    """A few kB that would unpack to 300 MB or 4.8 GB; Pillow warns of one, raises at the other."""
    bomb = encoded(Image.new("1", (side, 1)), "PNG")
    width_at, height_at = 16, 20
    header = bomb[:height_at] + side.to_bytes(4, "big") + bomb[height_at + 4 :]
    assert header[width_at:height_at] == side.to_bytes(4, "big")
    crc = zlib.crc32(header[12:29]).to_bytes(4, "big")
    assert refusal(header[:29] + crc + header[33:]).reason == "too_many_pixels"


def test_raw_pixels():
    pixels = np.arange(224 * 224 * 3, dtype=np.uint8).reshape(224, 224, 3)
    assert np.array_equal(read_pixels(pixels.tobytes(), SPEC), pixels)
    with pytest.raises(ImageError, match=r"100 bytes.*expected 150528") as caught:
        read_pixels(bytes(100), SPEC)
    assert caught.value.reason == "wrong_size"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.filterwarnings("ignore")
def test_mutated_files_give_pixels_or_an_image_error(kind):
    options = {"TIFF": {"compression": "tiff_lzw"}}.get(kind, {})
    content = encoded(photo((90, 70)), kind, **options)
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(300):
        mutated = bytearray(content)
        for place in rng.integers(0, len(content), rng.integers(1, 4)):
            mutated[place] = rng.integers(256)
        try:
            assert load_pixels(bytes(mutated), SPEC).shape == (224, 224, 3)
        except ImageError:
            errors += 1
    assert errors > 0 or kind == "BMP", "nothing in a bitmap says what its pixels should be"


def test_a_damaged_png_is_not_taken_for_sound():
    content = bytearray(encoded(photo((300, 300)), "PNG"))
    content[len(content) // 2] ^= 1
    assert refusal(bytes(content)).reason == "damaged"


def test_a_palette_without_colours_is_damaged():
    content = encoded(Image.new("P", (300, 300)), "PNG")
    start = content.index(b"PLTE") - 4
    length = int.from_bytes(content[start : start + 4], "big") + 12
    assert refusal(content[:start] + content[start + length :]).reason == "damaged"


def test_a_jpeg_of_endless_scans_is_refused_but_not_what_stands_behind_an_image():
    progressive = encoded(photo((64, 64)), "JPEG", progressive=True)
    scan = progressive[progressive.rindex(b"\xff\xda") : progressive.rindex(b"\xff\xd9")]
    bomb = progressive[:-2] + scan * 200 + b"\xff\xd9"
    assert refusal(bomb).reason == "unsupported"
    motion_photo = progressive + b"\xff\xda" * 200
    assert load_pixels(motion_photo, SPEC).shape == (224, 224, 3)
