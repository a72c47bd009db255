"""TIFFs that ask for more than their pixels, and the odd ones that are sound."""

import struct
import subprocess
import sys
import zlib

import pytest
from PIL import Image
from processes import ROOT
from tiny import encoded

from packshot.errors import ImageError
from packshot.image import ImageLimits, ImageSpec, load_pixels

RED = (230, 20, 20)
SHORT, LONG, FRACTION = 3, 4, 5
DEFLATE = 8
SIZES = {SHORT: "H", LONG: "L", FRACTION: "LL"}
Tags = dict[int, tuple[int, list[int]]]
"""Number to type and values."""


def tiff(tags: Tags, data: bytes = b"", *, order: str = "<", big: bool = False) -> bytes:
    """One directory of `tags` and behind it `data`, in which the value ~n points at the byte n."""
    place, count, magic, start = ("Q", "Q", "HHQ", 16) if big else ("L", "H", "L", 8)
    entry, room = struct.Struct(f"{order}HH{place}"), struct.calcsize("=" + place)
    head = b"II" if order == "<" else b"MM"
    head += struct.pack(f"{order}H{magic}", *((43, 8, 0) if big else (42,)), start)
    lengths = {number: struct.calcsize("=" + SIZES[tags[number][0]]) for number in tags}
    behind = start + struct.calcsize("=" + count) + (entry.size + room) * len(tags) + room
    values = {n: len(v) * lengths[n] for n, (_, v) in tags.items() if len(v) * lengths[n] > room}
    end = behind + sum(values.values())
    directory, outside = struct.pack(order + count, len(tags)), b""
    for number, (kind, numbers) in sorted(tags.items()):
        flat = [end + ~v if v < 0 else v for v in numbers for _ in SIZES[kind]]
        packed = struct.pack(f"{order}{len(flat)}{SIZES[kind][0]}", *flat)
        directory += entry.pack(number, kind, len(numbers))
        if number in values:
            directory += struct.pack(order + place, behind + len(outside))
            outside += packed
        else:
            directory += packed.ljust(room, b"\0")
    return head + directory + struct.pack(order + place, 0) + outside + data


def colour(width: int, height: int, compression: int = 1) -> Tags:
    return {
        256: (LONG, [width]), 257: (LONG, [height]), 258: (SHORT, [8, 8, 8]),
        259: (SHORT, [compression]), 262: (SHORT, [2]), 277: (SHORT, [3]),
    }  # fmt: skip


def tiled(width: int, height: int, tile: tuple[int, int], **form: object) -> bytes:
    """All tiles are one and the same."""
    across, down = tile
    pixels = zlib.compress(bytes(RED) * (across * down), 9)
    pieces = -(-width // across) * -(-height // down)
    places = {
        322: (LONG, [across]), 323: (LONG, [down]),
        324: (LONG, [~0] * pieces), 325: (LONG, [len(pixels)] * pieces),
    }  # fmt: skip
    return tiff(colour(width, height, DEFLATE) | places, pixels, **form)


def striped(width: int, height: int, **more: tuple[int, list[int]]) -> bytes:
    pixels = bytes(RED) * (width * height)
    places = {273: (LONG, [~0]), 278: (LONG, [height]), 279: (LONG, [len(pixels)])}
    return tiff(colour(width, height) | places | {int(n[1:]): v for n, v in more.items()}, pixels)


def colour_of(content: bytes) -> tuple[int, ...]:
    return tuple(load_pixels(content, ImageSpec())[112, 112].tolist())


def refusal(content: bytes, max_pixels: int = 1_000_000) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load_pixels(content, ImageSpec(), ImageLimits(max_pixels=max_pixels))
    return caught.value


FORMS = [{"order": "<"}, {"order": ">"}, {"order": "<", "big": True}]


@pytest.mark.parametrize("form", FORMS, ids=["little", "big", "BigTIFF"])
def test_a_tile_larger_than_the_limit_is_refused_however_small_the_image(form):
    assert colour_of(tiled(100, 100, (512, 512), **form)) == RED
    error = refusal(tiled(100, 100, (1024, 1024), **form))
    assert error.reason == "too_many_pixels"
    assert str(error).startswith("100x100 pixels in tiles of 1024x1024; the limit is 1000000")


def test_tiles_may_not_have_many_times_the_pixels_of_the_image():
    assert colour_of(tiled(16, 4000, (256, 256))) == RED
    assert refusal(tiled(16, 60_000, (256, 256))).reason == "too_many_pixels"


PEAK = """
import sys
from pathlib import Path
from packshot.errors import ImageError
from packshot.image import ImageSpec, load_pixels

def peak_kilobytes():  # not resource.getrusage: it starts with the peak of who started this
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])

content = sys.stdin.buffer.read()
before = peak_kilobytes()
try:
    load_pixels(content, ImageSpec())
except ImageError:
    pass
print((peak_kilobytes() - before) * 1024)
"""


def peak_bytes(content: bytes) -> int:
    """What decoding takes at most, in a process of its own."""
    command = [sys.executable, "-W", "ignore", "-c", PEAK]
    return int(subprocess.run(command, cwd=ROOT, input=content, stdout=-1, check=True).stdout)


def test_no_memory_is_spent_on_a_huge_tile():
    assert peak_bytes(tiled(100, 100, (8192, 8192))) < 100 << 20


def test_decoding_takes_up_to_16_bytes_a_pixel():
    """A WebP with alpha takes most: the decoder holds two canvases beside the image."""
    side = 3000
    clear = encoded(Image.new("RGBA", (side, side), (9, 9, 9, 9)), "WEBP", method=0)
    room = 10 << 20  # modules
    assert peak_bytes(clear) < 16 * side * side + room


def test_one_strip_may_be_of_endlessly_many_rows():
    assert colour_of(striped(300, 300, _278=(LONG, [2**32 - 1]))) == RED


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate"])
def test_strips_of_one_row_and_pages_are_nothing_special(compression):
    image = Image.new("RGB", (300, 300), RED)
    content = encoded(
        image, "TIFF", compression=compression, strip_size=1, save_all=True, append_images=[image]
    )
    assert colour_of(content) == RED


def test_planes_may_stand_one_after_the_other():
    planes = b"".join(bytes([level]) * 90_000 for level in RED)
    places: Tags = {
        273: (LONG, [~0, ~90_000, ~180_000]), 278: (LONG, [300]), 279: (LONG, [90_000] * 3),
        284: (SHORT, [2]),
    }  # fmt: skip
    assert colour_of(tiff(colour(300, 300) | places, planes)) == RED


def test_too_many_strips_or_tiles_are_refused():
    error = refusal(striped(10, 10, _273=(SHORT, [8] * 70_000)))
    assert error.reason == "unsupported"
    assert "more than 65536 strips or tiles" in str(error)
    assert refusal(striped(1, 70_000, _278=(LONG, [1]))).reason == "unsupported"
    assert refusal(tiled(300, 300, (1, 1)))  # 90,000


def test_tags_of_too_many_values_are_refused():
    resolution, depth, unknown = 282, 258, 65_000
    assert colour_of(striped(10, 10, **{f"_{unknown}": (SHORT, [7] * 200_000)})) == RED
    for number, kind, values in (
        (resolution, FRACTION, 5000), (depth, SHORT, 600_000), (unknown, LONG, 600_000)
    ):  # fmt: skip
        error = refusal(striped(10, 10, **{f"_{number}": (kind, [7] * values)}))
        assert (error.reason, "too many tags or values" in str(error)) == ("unsupported", True)


def test_the_directory_of_exif_counts_too():
    exif = tiff({33_434: (FRACTION, [7] * 5000)})
    # Only its number of values matters: where they are is not looked up.
    places = {273: (LONG, [~0]), 278: (LONG, [10]), 279: (LONG, [300]), 34_665: (LONG, [~0])}
    assert refusal(tiff(colour(10, 10) | places, exif[8:])).reason == "unsupported"


def test_a_big_endian_bigtiff_which_two_readers_read_differently_is_refused():
    content = tiled(100, 100, (128, 128), order=">", big=True)
    assert content.startswith(b"MM\0\x2b")
    assert refusal(content).reason == "unsupported"


def test_a_directory_that_ends_or_points_anywhere_is_left_to_the_decoder():
    sound = tiled(100, 100, (128, 128))
    for content in (sound[:9], sound[:60], sound[:4] + b"\xff" * 4, b"II*\0", b"MM", b"II\x2b\0"):
        assert refusal(content).reason in ("not_an_image", "damaged")
