"""Copies of a picture: exact ones by sha256, near ones by what they look like.

Held out and trained on at once, a copy flatters every figure. A re-encoded, resized or slightly
cropped copy does so as well as an exact one.

A near copy is a pair that two measures agree on: a perceptual hash of 64 bits (the signs of a DCT,
Zauner, 2010), which finds candidates fast, and the distance of two thumbnails in colour, which
decides. The hash alone does not do for products: on plain backgrounds hundreds of them share it,
and it does not see colour.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt
from PIL import Image

HASH_SIDE = 32  # pixels; the hash is of the 8 x 8 lowest frequencies of so many
THUMBNAIL_SIDE = 8
# Of 752 drawn products, 282,376 pairs, none is taken for a copy of another, neither as drawn nor at
# half the size on one and the same white frame, where 4,329 pairs are within 6 bits and the closest
# of these at 0.153. Copies found of every fourth product: saved at JPEG quality 50 or resized to
# 128 pixels, all; at quality 20, 91 %; cropped by 1 % of the width, 96 %; by 2 % all round, 80 %.
# Copies that are cropped by 4 % or brightened by a tenth count as pictures of their own.
MAX_BITS = 6
MAX_DISTANCE = 0.13
BANDS = MAX_BITS + 1  # two hashes that differ in 6 bits are equal in at least one of 7 bands
BAND_BITS = 64 // BANDS
PAIRS_AT_ONCE = 1_000_000
DISTANCES_AT_ONCE = 20_000

Hashes = npt.NDArray[np.uint64]
Thumbnails = npt.NDArray[np.float32]
Numbers = npt.NDArray[np.int64]

_FREQUENCY, _PIXEL = np.mgrid[:8, :HASH_SIDE]
DCT = np.cos(np.pi / HASH_SIDE * (_PIXEL + 0.5) * _FREQUENCY)
BITS = np.array([number.bit_count() for number in range(1 << 16)], np.uint8)


class Duplicates(msgspec.Struct, frozen=True, kw_only=True):
    """Groups of files that show one picture; each file is in at most one group.

    `exact`: all the same, byte for byte. `near`: at least two of them differ in their bytes.
    """

    exact: tuple[tuple[str, ...], ...] = ()
    near: tuple[tuple[str, ...], ...] = ()

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        return self.exact + self.near


def shrunk(rgb: Image.Image) -> Image.Image:
    """32 x 32 pixels, each the mean of its part: what both measures are taken of."""
    return rgb.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BOX)


def perceptual_hash(small: Image.Image) -> int:
    """64 bits of a `shrunk` picture: which of the 8 x 8 lowest frequencies exceed their median."""
    spectrum = DCT @ np.asarray(small.convert("L"), np.float64) @ DCT.T
    bits = spectrum > np.median(spectrum.ravel()[1:])  # the first is the mean brightness
    return int.from_bytes(np.packbits(bits).tobytes())


def thumbnail(small: Image.Image) -> bytes:
    """uint8 [8, 8, 3] of a `shrunk` picture, as bytes."""
    return small.reduce(HASH_SIDE // THUMBNAIL_SIDE).tobytes()


def find_duplicates(
    files: Sequence[str],
    contents: Sequence[str],
    hashes: Sequence[int],
    thumbnails: Sequence[bytes],
) -> Duplicates:
    """Groups of copies among N files, given their sha256, perceptual hashes and thumbnails.

    Being a copy is passed on: if a is a near copy of b and b of c, all three are one group.
    """
    by_content: dict[str, list[int]] = {}
    for i, content in enumerate(contents):
        by_content.setdefault(content, []).append(i)
    firsts = [members[0] for members in by_content.values()]
    joined = join_near(
        np.array([hashes[i] for i in firsts], np.uint64),
        np.stack([np.frombuffer(thumbnails[i], np.uint8) for i in firsts]).astype(np.float32),
    )
    groups: dict[int, list[list[int]]] = {}
    for representative, members in zip(joined.tolist(), by_content.values(), strict=True):
        groups.setdefault(representative, []).append(members)
    exact: list[tuple[str, ...]] = []
    near: list[tuple[str, ...]] = []
    for copies in groups.values():
        names = tuple(sorted(files[i] for members in copies for i in members))
        if len(names) > 1:
            (near if len(copies) > 1 else exact).append(names)
    return Duplicates(exact=tuple(sorted(exact)), near=tuple(sorted(near)))


def join_near(hashes: Hashes, thumbnails: Thumbnails) -> npt.NDArray[np.int64]:
    """For each of N pictures the first picture of its group of near copies, int64 [N].

    hashes: [N]; thumbnails: [N, 192]. Only pairs whose hashes are equal in one of 7 bands of 9 bits
    are compared: of evenly spread hashes one pair in 73, and none of those within 6 bits is missed.
    50,000 small products on white take 10 seconds of one core, 50,000 that vary less than 2.
    """
    group = np.arange(len(hashes))
    _, firsts, run = np.unique(hashes, return_index=True, return_inverse=True)
    _join(group, thumbnails, (firsts[run], group.copy()))
    # Of those joined by an equal hash, one stands for all: a placeholder may be there 10,000 times.
    _, standing = np.unique(np.stack([hashes, group.astype(np.uint64)]), axis=1, return_index=True)
    for band in range(BANDS):
        keys = (hashes[standing] >> np.uint64(band * BAND_BITS)) & np.uint64((1 << BAND_BITS) - 1)
        order = np.argsort(keys, kind="stable")
        ends = np.flatnonzero(np.diff(keys[order])) + 1
        for bucket in np.split(standing[order], ends):
            rows = max(1, PAIRS_AT_ONCE // len(bucket))
            for start in range(0, len(bucket) - 1, rows):
                _join(
                    group, thumbnails, _alike(hashes, bucket[start : start + rows], bucket[start:])
                )
    return group


def _alike(hashes: Hashes, some: Numbers, others: Numbers) -> tuple[Numbers, Numbers]:
    """The pairs, one of `some` and one of `others`, whose hashes differ in few bits."""
    differing = hashes[some, None] ^ hashes[others]
    bits = BITS[differing.view(np.uint16).reshape(*differing.shape, 4)].sum(axis=-1, dtype=np.uint8)
    first, second = np.nonzero(bits <= MAX_BITS)
    return some[first], others[second]


def _join(group: Numbers, thumbnails: Thumbnails, pairs: tuple[Numbers, Numbers]) -> None:
    """Puts those of the pairs that are near copies into one group, in `group` itself."""
    while len(pairs[0]):
        apart = group[pairs[0]] != group[pairs[1]]  # thousands of copies of one join at once
        a, b = (side[apart] for side in pairs)
        pairs = a[DISTANCES_AT_ONCE:], b[DISTANCES_AT_ONCE:]
        a, b = a[:DISTANCES_AT_ONCE], b[:DISTANCES_AT_ONCE]
        near = distance(thumbnails[a], thumbnails[b]) <= MAX_DISTANCE
        for one, other in zip(a[near], b[near], strict=True):
            low, high = sorted((group[one], group[other]))
            if low != high:
                group[group == high] = low


def distance(a: Thumbnails, b: Thumbnails) -> Thumbnails:
    """Root mean square difference of thumbnails [N, 192], as a share of the larger contrast, [N].

    In grey levels it would be small for any two small products on white.
    """
    cells = (-1, THUMBNAIL_SIDE**2, 3)
    contrast = np.sqrt([x.reshape(cells).var(axis=1).mean(axis=1) for x in (a, b)]).max(axis=0)
    difference: Thumbnails = np.sqrt(np.mean((a - b) ** 2, axis=1))
    # Of a picture of one colour the difference is in grey levels.
    difference /= np.maximum(contrast, 1.0)
    return difference
