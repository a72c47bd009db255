"""Endless headers, which Pillow would walk through in Python, and long ones that are real."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from tiny import encoded

from packshot.errors import ImageError
from packshot.headers import BYTES_A_READ, MIN_READS, Metered
from packshot.image import ImageSpec, load_pixels

RED = (230, 20, 20)
IMAGE = Image.new("RGB", (300, 300), RED)
JPEG, PNG, GIF = (encoded(IMAGE, kind) for kind in ("JPEG", "PNG", "GIF"))
GIF_BLOCKS = 13 + 3 * (2 << (GIF[10] & 7))  # where they begin, behind the palette


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def chunk(kind: bytes, content: bytes = b"") -> bytes:
    checksum = struct.pack(">L", zlib.crc32(kind + content))
    return struct.pack(">L", len(content)) + kind + content + checksum


def in_jpeg(more: bytes) -> bytes:
    return JPEG[:2] + more + JPEG[2:]


def in_png(more: bytes) -> bytes:
    return PNG[:33] + more + PNG[33:]


def in_gif(more: bytes) -> bytes:
    return GIF[:GIF_BLOCKS] + more + GIF[GIF_BLOCKS:]


def bitmap(width: int, height: int, runs: bytes) -> bytes:
    """Run-length encoded, of 256 greys."""
    start = 14 + 40 + 1024
    head = struct.pack("<2sIHHI", b"BM", start + len(runs), 0, 0, start)
    head += struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return head + b"".join(bytes([grey] * 3 + [0]) for grey in range(256)) + runs


def exif(values: int, tag: int = 0x0112) -> bytes:
    """One tag of so many fractions."""
    head = b"II*\0" + struct.pack("<LHHHLLL", 8, 1, tag, 5, values, 26, 0)
    return head + struct.pack("<LL", 1, 1) * values


def colour_of(content: bytes) -> tuple[int, ...]:
    return tuple(load_pixels(content, ImageSpec())[112, 112].tolist())


def is_red(content: bytes) -> bool:
    return bool(np.abs(np.subtract(colour_of(content), RED)).max() <= 4)


def refusal(content: bytes) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_pixels(content, ImageSpec())
    return caught.value


ENDLESS = {
    "JPEG of fill bytes": in_jpeg(b"\xff" * 30_000),
    "JPEG of empty comments": in_jpeg(b"\xff\xfe\0\2" * 10_000),
    "JPEG of restarts": in_jpeg(b"\xff\xd0" * 15_000),
    "PNG of empty chunks": in_png(chunk(b"abCd") * 10_000),
    "PNG of empty pixels": in_png(chunk(b"IDAT") * 10_000),
    "PNG of texts": in_png(chunk(b"tEXt", b"a\0") * 7000),
    "GIF of extensions": in_gif(b"\x21\x01\x01a\0" * 7000),
    "GIF of a comment": in_gif(b"\x21\xfe" + b"\x01a" * 10_000 + b"\0"),
    "GIF of nothing": in_gif(bytes(30_000)),
}


@pytest.mark.parametrize("content", ENDLESS.values(), ids=ENDLESS)
def test_endless_parts_are_refused(content):
    error = refusal(content)
    assert error.reason == "unsupported"
    assert "too many parts" in str(error)


def test_a_file_is_read_in_so_many_steps_and_no_more():
    content = bytes(100 * BYTES_A_READ)
    file = Metered(content)
    for _ in range(MIN_READS + 100):
        file.read(1)
    with pytest.raises(ImageError, match="too many parts"):
        file.read(1)


def pixels_in_pieces(size: int) -> bytes:
    start = PNG.index(b"IDAT") - 4
    length = int.from_bytes(PNG[start : start + 4])
    data = PNG[start + 8 : start + 8 + length]
    pieces = b"".join(chunk(b"IDAT", data[at : at + size]) for at in range(0, length, size))
    return PNG[:start] + pieces + PNG[start + length + 12 :]


def noise() -> Image.Image:
    grey = np.random.default_rng(0).integers(0, 256, (1000, 1000), np.uint8)
    grey[300:700, 300:700] = 255
    return Image.fromarray(grey)


LONG = {
    "JPEG of a large profile": encoded(IMAGE, "JPEG", icc_profile=bytes(16_000_000)),
    "JPEG of extended XMP": in_jpeg(segment(0xE1, b"http://ns.adobe.com/xmp/" + bytes(900)) * 900),
    "JPEG of padding": in_jpeg(b"\xff" * 4000),
    "JPEG of many resources": in_jpeg(segment(0xED, b"Photoshop 3.0\0" + b"8BIM" * 1000) * 4),
    "PNG in bytes": pixels_in_pieces(1),
    "PNG of texts": in_png(chunk(b"zTXt", b"a\0\0" + zlib.compress(b"a")) * 100),
    "GIF of XMP": in_gif(b"\x21\xff\x0bXMP DataXMP" + (b"\x50" + b"x" * 80) * 20_000 + b"\0"),
}


@pytest.mark.parametrize("content", LONG.values(), ids=LONG)
def test_long_headers_that_are_real_are_none(content):
    assert is_red(content)


@pytest.mark.parametrize("restarts", [1, 8])
def test_progressive_jpegs_with_restarts_are_no_scans(restarts):
    content = encoded(noise(), "JPEG", progressive=True, restart_marker_blocks=restarts)
    assert content.count(b"\xff\xd3") > 1000
    assert colour_of(content) == (255, 255, 255)


def test_a_png_of_small_pieces_that_grow_with_it_is_sound():
    content = encoded(noise(), "PNG")
    start, end = content.index(b"IDAT") - 4, content.rindex(b"IEND") - 4
    png = Image.open(io.BytesIO(content))
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in np.asarray(png)), 1)
    pieces = b"".join(chunk(b"IDAT", data[at : at + 256]) for at in range(0, len(data), 256))
    assert pieces.count(b"IDAT") > 3000
    assert colour_of(content[:start] + pieces + content[end:]) == (255, 255, 255)


def test_scans_behind_endless_markers_are_not_overlooked():
    scan = JPEG[JPEG.index(b"\xff\xda") : -2]
    content = JPEG[:-2] + segment(0xFE, b"") * 40_000 + scan * 101 + JPEG[-2:]
    assert "more than 100 scans" in str(refusal(content))


def test_tables_are_no_larger_than_all_that_can_be_used():
    tables = segment(0xDB, (b"\0" + bytes(range(1, 65))) * 480)
    assert is_red(in_jpeg(tables * 2))
    for header in (
        tables * 3,
        b"\xff" * 4000 + tables * 3,
        segment(0xC0, bytes([8, 0, 9, 0, 9, 3]) + bytes(60_000)) * 2,
        segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5000),
    ):
        assert refusal(in_jpeg(header)).reason == "unsupported"


def test_texts_and_profiles_that_unpack_to_a_megabyte_are_counted():
    bomb = chunk(b"iCCP", b"a\0\0" + zlib.compress(bytes(1 << 20), 9))
    assert refusal(in_png(bomb * 101)).reason == "unsupported"
    assert refusal(PNG[:-12] + bomb * 101 + PNG[-12:]).reason == "unsupported"


@pytest.mark.parametrize("values", [1000, 150_000])
def test_exif_is_no_larger_than_a_megabyte(values):
    block = exif(values)
    segments = [
        segment(0xE1, b"Exif\0\0" + block[at : at + 60_000]) for at in range(0, len(block), 60_000)
    ]
    for content in (
        in_jpeg(b"".join(segments)),
        in_png(chunk(b"eXIf", block)),
        PNG[:-12] + chunk(b"eXIf", block) + PNG[-12:],
        encoded(IMAGE, "WEBP", exif=b"Exif\0\0" + block),
    ):
        if values == 1000:
            assert is_red(content)
        else:
            assert "EXIF" in str(refusal(content))


def test_run_lengths_are_unpacked_of_few_pixels_only():
    rows = (b"\x01\xe6" * 300 + b"\0\0") * 300  # each run is of one pixel
    assert colour_of(bitmap(300, 300, rows)) == (230, 230, 230)
    error = refusal(bitmap(2000, 1100, b"\1\1\0\0" * 1100))
    assert error.reason == "too_many_pixels"
    assert "the limit is 2097152" in str(error)
    assert refusal(bitmap(20, 20, b"\0\0" * 50_000)).reason == "unsupported"
