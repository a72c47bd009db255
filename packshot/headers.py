"""What stands before and between the pixels of a file: no more of it than costs milliseconds.

Pillow reads headers in Python, step by step, while every other thread waits. Real files take some
dozens of steps; millions fit into one of 20 MB.
"""

import io
import re
import struct

import numpy as np

from packshot.errors import ImageError

# One for 64 bytes: of a PNG in pieces of 8 kB three for each, of long texts in a GIF one for 128.
MIN_READS, BYTES_A_READ = 16_384, 64

# A progressive JPEG has about ten scans; each costs a pass over all pixels, so that thousands in a
# small file would hold a decoder for minutes.
MAX_SCANS = 100
MAX_TABLE_BYTES = 1 << 16  # of a JPEG's tables and frame: all that are allowed take 4 kB
MAX_EXIF_BYTES = 1 << 20  # cameras' blocks have 64 kB at most
MAX_RESOURCES = 4096  # Photoshop's; it writes about thirty
MAX_TEXTS = 100  # compressed ones of a PNG, profiles among them: each may unpack to a megabyte

START_OF_SCAN, END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")  # neither stuffed nor a restart
SEGMENT = re.compile(rb"\xff[\xc0-\xc7\xc9-\xcf\xda-\xef\xfe]")  # with a length behind it
SCAN, APPLICATION, EXIF, PHOTOSHOP = 0xDA, 0xE0, 0xE1, 0xED

CHUNK = struct.Struct(">L4s")
TEXTS = frozenset({b"iCCP", b"iTXt", b"zTXt"})


class Metered(io.BytesIO):
    """An encoded image that is read in so many steps only; then `read` raises ImageError."""

    def __init__(self, encoded: bytes) -> None:
        super().__init__(encoded)
        self.reads_left = most_reads(encoded)

    def read(self, size: int | None = -1, /) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise ImageError("unsupported", "too many parts for so few bytes: save it again")
        return super().read(size)


def most_reads(encoded: bytes) -> int:
    """A bound on the parts of a file, too: each is at least one step."""
    return MIN_READS + len(encoded) // BYTES_A_READ


def check_jpeg(encoded: bytes) -> None:
    """Raises ImageError for scans and tables of which each costs more than a step."""
    if _scans(encoded) > MAX_SCANS:
        raise ImageError("unsupported", f"a JPEG of more than {MAX_SCANS} scans: save it again")
    tables = exif = resources = 0
    at, most = 2, most_reads(encoded)
    for _ in range(most):
        found = SEGMENT.search(encoded, at, at + most)
        if found is None or (marker := encoded[found.end() - 1]) == SCAN:
            break
        start = found.end()
        at = start + max(2, int.from_bytes(encoded[start : start + 2]))
        if marker < APPLICATION:
            tables += at - start
        elif marker == EXIF and encoded.startswith(b"Exif\0\0", start + 2):
            exif += at - start
        elif marker == PHOTOSHOP:
            resources += encoded.count(b"8BIM", start, at)
    if tables > MAX_TABLE_BYTES or exif > MAX_EXIF_BYTES or resources > MAX_RESOURCES:
        message = "a JPEG of too large tables, EXIF or Photoshop's resources: save it again"
        raise ImageError("unsupported", message)


def check_png(encoded: bytes) -> None:
    """Raises ImageError for more compressed texts than anybody writes."""
    texts, at = 0, 8
    for _ in range(most_reads(encoded) // 2):  # head and checksum
        if at + CHUNK.size > len(encoded):
            break
        length, kind = CHUNK.unpack_from(encoded, at)
        texts += kind in TEXTS
        at += CHUNK.size + length + 4  # the checksum
    if texts > MAX_TEXTS:
        message = f"a PNG of more than {MAX_TEXTS} compressed texts: save it again"
        raise ImageError("unsupported", message)


def _scans(encoded: bytes) -> int:
    """Scans of the first image in a JPEG file; what stands behind it does not count."""
    if _pairs(encoded, START_OF_SCAN) <= MAX_SCANS:  # an upper bound, and quick
        return 0
    scans, position = 0, 2
    for _ in range(most_reads(encoded)):
        found = MARKER.search(encoded, position)
        if not found or found[0] == END_OF_IMAGE:
            return scans
        scans += found[0] == START_OF_SCAN
        position = found.end() + int.from_bytes(encoded[found.end() : found.end() + 2])
    return MAX_SCANS + 1  # or as many markers that are none


def _pairs(encoded: bytes, pair: bytes) -> int:
    """How often two different bytes follow each other: `bytes.count`, in a fifth of its time."""
    wanted = int.from_bytes(pair, "little")
    return sum(
        int(np.count_nonzero(np.frombuffer(encoded, "<u2", (len(encoded) - at) // 2, at) == wanted))
        for at in (0, 1)
    )
