"""What the first directory of a TIFF asks for, looked at before a decoder gives it.

libtiff decodes whole tiles, whatever the size of the image; Pillow makes an object of each number
in a tag. A few kB can so ask for gigabytes. What is merely damaged is left for them to refuse.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from packshot.errors import ImageError

WIDTH, HEIGHT, ROWS_PER_STRIP, TILE_WIDTH, TILE_HEIGHT = 256, 257, 278, 322, 323
PLACES = frozenset({273, 279, 324, 325})  # of strips and tiles, and their numbers of bytes
POINTERS = frozenset({34665, 34853, 40965})  # to EXIF, GPS and interoperability

MAX_DIRECTORIES = 8
MAX_TAGS = 4096  # of all directories; cameras write about a hundred
MAX_NUMBERS = 1 << 19  # of all tags; the longest tables are colour maps of 3 x 65,536
MAX_FRACTIONS = 4096  # of all tags; each becomes an object of 300 bytes
MAX_PIECES = 65_536  # strips or tiles; 50 million pixels row by row, in three planes, are 21,000

# TIFF's types as `struct` names them; text and bytes are 1, 2 and 7, fractions 5 and 10.
KINDS = {1: "B", 2: "s", 3: "H", 4: "L", 5: "Q", 6: "b", 7: "s", 8: "h", 9: "l", 10: "q", 11: "f"}
KINDS |= {12: "d", 13: "L", 16: "Q", 17: "q", 18: "Q"}
SIZES = {kind: struct.calcsize(f"={name}") for kind, name in KINDS.items()}
INTEGERS = KINDS.keys() - {2, 5, 7, 10, 11, 12}
FRACTIONS = frozenset({5, 10})
NUMBERS = KINDS.keys() - {1, 2, 7}


class Tag(NamedTuple):
    number: int
    kind: int
    values: int
    first: int
    """The first value of integers, 0 of all else."""


def check_tiff(encoded: bytes, max_pixels: int) -> None:
    """Raises ImageError for a file that takes more memory or time than `max_pixels` pixels do."""
    if encoded.startswith(b"MM\0\x2b"):  # to libtiff, but not to Pillow, a BigTIFF
        raise ImageError("unsupported", "a big-endian BigTIFF: save it again")
    first, *others = _directories(encoded)
    _check_values([*first, *(tag for directory in others for tag in directory)])
    _check_pieces(first, max_pixels)


def _check_values(tags: list[Tag]) -> None:
    fractions = sum(tag.values for tag in tags if tag.kind in FRACTIONS)
    numbers = sum(t.values for t in tags if t.kind in NUMBERS and t.number not in PLACES)
    if len(tags) > MAX_TAGS or fractions > MAX_FRACTIONS or numbers > MAX_NUMBERS:
        raise ImageError("unsupported", "a TIFF of too many tags or values: save it again")


def _check_pieces(tags: list[Tag], max_pixels: int) -> None:
    size: dict[int, int] = {}
    for tag in tags:
        size[tag.number] = max(tag.first, size.get(tag.number, 0))
    width, height = size.get(WIDTH, 0), size.get(HEIGHT, 0)
    tiled = TILE_WIDTH in size or TILE_HEIGHT in size
    across = size.get(TILE_WIDTH, 0) if tiled else width
    down = size.get(TILE_HEIGHT, 0) if tiled else size.get(ROWS_PER_STRIP, height)
    pieces = -(-width // max(across, 1)) * -(-height // max(down, 1))
    # One tile is held at a time; what all have beside the image may double its size.
    if tiled and (across * down > max_pixels or pieces * across * down > 2 * max_pixels):
        message = f"{width}x{height} pixels in tiles of {across}x{down}; the limit is {max_pixels}"
        raise ImageError("too_many_pixels", f"{message}: send a smaller image")
    if max(pieces, *(tag.values for tag in tags if tag.number in PLACES), 0) > MAX_PIECES:
        message = f"a TIFF of more than {MAX_PIECES} strips or tiles: save it again"
        raise ImageError("unsupported", message)


def _directories(encoded: bytes) -> Iterator[list[Tag]]:
    """The first, and those that it points at, which Pillow reads as well; no further pages."""
    order, big = "<>"[encoded.startswith(b"M")], encoded[2:3] == b"\x2b"
    place = order + "LQ"[big]
    places = [_number(encoded, place, 8 if big else 4)]
    for at in places:  # grows meanwhile
        tags = list(_tags(encoded, at, order, big))
        places += [tag.first for tag in tags if tag.number in POINTERS and tag.first]
        del places[MAX_DIRECTORIES:]
        yield tags


def _tags(encoded: bytes, at: int, order: str, big: bool) -> Iterator[Tag]:
    """Those that the file has room for, one more than are allowed at most."""
    count, place = order + "HQ"[big], order + "LQ"[big]
    entry = struct.Struct(order + "HH" + "LQ"[big])
    room = struct.calcsize(place)  # for a value; where it is larger, its place stands there
    step, start = entry.size + room, at + struct.calcsize(count)
    end = start + step * min(_number(encoded, count, at), MAX_TAGS + 1)
    for at in range(start, min(end, len(encoded) - step + 1), step):
        number, kind, values = entry.unpack_from(encoded, at)
        size = SIZES.get(kind, 0) * values
        if 0 < size <= len(encoded):  # Pillow passes over all others
            where = at + entry.size
            where = where if size <= room else _number(encoded, place, where)
            first = _number(encoded, order + KINDS[kind], where) if kind in INTEGERS else 0
            yield Tag(number, kind, values, first)


def _number(encoded: bytes, form: str, at: int) -> int:
    """0 where the file has ended."""
    if at + struct.calcsize(form) > len(encoded):
        return 0
    (value,) = struct.unpack_from(form, encoded, at)
    return int(value)
