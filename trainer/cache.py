"""The cache of a run's training images, resized once: decoding is paid for once, not every epoch.

DIR/pixels-<key>/pixels       uint8, image after image, RGB, row by row; mapped into memory
DIR/inspected-<key>.msgpack   what the verification pass saw, so that it need not decode again

Both are keyed by what they are made of, contents (sha256) and image spec: a file that has changed
has another key, so that nothing stale is served. Only training reads from here; evaluation's pixels
come from `packshot.image` alone.
"""

import errno
import hashlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import PIL
from PIL import Image
from tqdm import tqdm

from packshot.atomic import whole_folder, write_whole
from packshot.cores import available_cores
from packshot.errors import DamagedFile, ImageError, InvalidInput
from packshot.image import ImageSpec, Pixels, decode_rgb, open_image
from packshot.resizing import resized
from trainer.data import Example, Split
from trainer.verify import LIMITS, Inspected

FORMAT = 1
SIDE = 288  # pixels: half a picture's area, cropped for 224, is enlarged by a tenth
PIXELS = "pixels"
AT_ONCE = 64  # images decoded before they are written: what memory holds
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
REMEDY = "name a --cache on a larger disk, or train without one"

Place = tuple[int, int, int]
"""Of one image in the file: offset in bytes, height and width in pixels."""


class PixelCache:
    """Training images by their sha256, uint8 [height, width, 3]; short side `SIDE` pixels or less.

    With `fit` pad it is the long side: that of the square that crops are taken from.

    Raises DamagedFile if the file is not as long as its images.
    """

    def __init__(self, path: Path, places: Mapping[str, Place]) -> None:
        length = _length(places)
        if path.stat().st_size != length:
            raise DamagedFile(
                f"{path} does not have its {length} bytes: remove it, and train again"
            )
        self._path, self._places = path, places
        self._pixels = np.memmap(path, np.uint8, "r")

    def __getitem__(self, example: Example) -> Pixels:
        offset, height, width = self._places[example.sha256]
        return self._pixels[offset : offset + height * width * 3].reshape(height, width, 3)

    def __reduce__(self) -> tuple[type["PixelCache"], tuple[Path, Mapping[str, Place]]]:
        """Loader processes map the file again, instead of being sent what is in it."""
        return PixelCache, (self._path, self._places)


def open_cache(
    folder: Path, split: Split, spec: ImageSpec, say: Callable[[str], None]
) -> PixelCache:
    """The cache of the split's training images, written now unless it is there.

    Raises InvalidInput if the disk cannot hold it, DamagedFile for an image that has changed since
    it was verified.
    """
    examples = {example.sha256: example for example in split.train}
    places = _places(examples, spec)
    target = folder / f"pixels-{_key(places, spec)}"
    if (target / PIXELS).exists():
        say(f"cache: {len(places)} training images from {target}, no file is decoded")
        return PixelCache(target / PIXELS, places)
    say(f"cache: {len(places)} training images, {_length(places) / 1e6:,.0f} MB, into {target}")
    _check_room(folder, _length(places))
    try:
        with suppress(FileExistsError), whole_folder(target) as unfinished:  # or another's, as good
            _write(unfinished / PIXELS, split, examples, places, spec)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise InvalidInput(f"--cache {folder}: {error.strerror} while writing; {REMEDY}") from error
    return PixelCache(target / PIXELS, places)


def read_inspected(folder: Path, spec: ImageSpec) -> dict[str, Inspected]:
    """What earlier verification passes saw, by sha256; nothing if there is no record to go by."""
    with suppress(OSError, msgspec.MsgspecError):
        content = _inspected(folder, spec).read_bytes()
        seen = msgspec.msgpack.decode(content, type=tuple[Inspected, ...])
        return {one.sha256: one for one in seen}
    return {}


def write_inspected(folder: Path, spec: ImageSpec, seen: Mapping[str, Inspected]) -> None:
    """Keeps what was seen, for `read_inspected`."""
    write_whole(_inspected(folder, spec), msgspec.msgpack.encode(tuple(seen.values())))


def _inspected(folder: Path, spec: ImageSpec) -> Path:
    """Another decoder, or another version of it, may see other faults."""
    made_by = msgspec.json.encode((FORMAT, spec, PIL.__version__))
    return folder / f"inspected-{hashlib.sha256(made_by).hexdigest()[:16]}.msgpack"


def _places(examples: Mapping[str, Example], spec: ImageSpec) -> dict[str, Place]:
    places, offset = {}, 0
    for sha256 in sorted(examples):
        width, height = _resized(examples[sha256], spec)
        places[sha256] = (offset, height, width)
        offset += height * width * 3
    return places


def _resized(example: Example, spec: ImageSpec) -> tuple[int, int]:
    """Width and height in the cache; nothing is enlarged."""
    sides = (example.width, example.height)
    scale = min(1.0, SIDE / (max(sides) if spec.fit == "pad" else min(sides)))
    return max(1, round(example.width * scale)), max(1, round(example.height * scale))


def _length(places: Mapping[str, Place]) -> int:
    return sum(height * width * 3 for _, height, width in places.values())


def _key(places: Mapping[str, Place], spec: ImageSpec) -> str:
    made_of = msgspec.json.encode((FORMAT, SIDE, spec, places))
    return hashlib.sha256(made_of).hexdigest()[:16]


def _check_room(folder: Path, length: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if length > free:
        raise InvalidInput(
            f"--cache {folder}: {length / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free: "
            f"{REMEDY}"
        )


def _write(
    path: Path,
    split: Split,
    examples: Mapping[str, Example],
    places: Mapping[str, Place],
    spec: ImageSpec,
) -> None:
    """Written, not mapped: on a full disk a write fails, where a mapped page ends the process."""

    def pixels(sha256: str) -> bytes:
        _, height, width = places[sha256]
        return _decoded(split, examples[sha256], spec, (width, height)).tobytes()

    order: Sequence[str] = list(places)
    with (
        path.open("wb") as file,
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(order), desc="writing the cache", unit="image", disable=None) as bar,
    ):
        for start in range(0, len(order), AT_ONCE):
            for content in pool.map(pixels, order[start : start + AT_ONCE]):
                file.write(content)
                bar.update()


def _draft(spec: ImageSpec) -> int | None:
    """Not below `SIDE`: what is kept is not enlarged."""
    return None if spec.draft_short_side is None else max(SIDE, spec.draft_short_side)


def _decoded(split: Split, example: Example, spec: ImageSpec, size: tuple[int, int]) -> Image.Image:
    """One image, decoded as for evaluation, in (width, height) pixels. Raises DamagedFile."""
    try:
        with open_image(split.read(example), LIMITS) as image:
            rgb, _ = decode_rgb(image, spec, _draft(spec))
    except ImageError as error:
        raise DamagedFile(f"{example.file}: {error}") from error
    return resized(rgb, size, (0, 0, *rgb.size), spec.resizer)
