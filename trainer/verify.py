"""The verification pass: every file read and decoded once, before anything depends on it."""

import hashlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
from tqdm import tqdm

from packshot.cores import available_cores
from packshot.errors import ImageError, InvalidInput
from packshot.image import ImageLimits, ImageSpec, decode_rgb, open_image
from trainer.duplicates import perceptual_hash, shrunk, thumbnail

NAMED = 10  # damaged files that a message names
AT_ONCE = 256  # files handed to the pool together
# Files of one's own may be larger than what a server takes from strangers.
LIMITS = ImageLimits(max_bytes=1 << 30, max_pixels=89_000_000)


class Inspected(msgspec.Struct, frozen=True, array_like=True):
    """What was seen of a sound image. Size in pixels, upright; `thumbnail`: see `duplicates`."""

    sha256: str
    width: int
    height: int
    perceptual_hash: int
    thumbnail: bytes


def verify(
    folder: Path,
    files: Sequence[str],
    spec: ImageSpec,
    known: dict[str, Inspected],
) -> tuple[dict[str, Inspected], dict[str, str]]:
    """Reads every file and decodes it fully: (the sound ones, the fault of the others), by file.

    Content that `known` has under its sha256 is not decoded again; what is seen anew is added.
    """

    def check(file: str) -> Inspected | str:
        try:
            file.encode()
            content = (folder / file).read_bytes()
            found = known.get(hashlib.sha256(content).hexdigest())
            return found or inspect(content, spec)
        except UnicodeEncodeError:
            return "its name is not valid UTF-8: rename it"
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        except ImageError as error:
            return str(error)

    sound: dict[str, Inspected] = {}
    damaged: dict[str, str] = {}
    with (
        ThreadPoolExecutor(available_cores()) as pool,
        tqdm(total=len(files), desc="verifying images", unit="image", disable=None) as bar,
    ):
        for start in range(0, len(files), AT_ONCE):
            some = files[start : start + AT_ONCE]
            for file, result in zip(some, pool.map(check, some), strict=True):
                bar.update()
                if isinstance(result, Inspected):
                    sound[file] = known[result.sha256] = result
                else:
                    damaged[file.encode(errors="backslashreplace").decode()] = result
    return sound, damaged


def inspect(content: bytes, spec: ImageSpec) -> Inspected:
    """Decodes an image as training, evaluation and server will. Raises ImageError."""
    with open_image(content, LIMITS) as image:
        rgb, (width, height) = decode_rgb(image, spec, spec.draft_short_side)
    small = shrunk(rgb)
    return Inspected(
        sha256=hashlib.sha256(content).hexdigest(),
        width=width,
        height=height,
        perceptual_hash=perceptual_hash(small),
        thumbnail=thumbnail(small),
    )


def damage_told(damaged: Mapping[str, str], total: int, allowed_share: float) -> tuple[str, ...]:
    """A warning that names damaged files. Raises InvalidInput for more than the allowed share."""
    if not damaged:
        return ()
    share = len(damaged) / total
    lines = [f"  {file}: {fault}" for file, fault in list(damaged.items())[:NAMED]]
    if len(damaged) > NAMED:
        lines.append(f"  and {len(damaged) - NAMED} more")
    named = "\n".join(lines)
    if share > allowed_share:
        raise InvalidInput(
            f"{len(damaged)} of {total} files ({share:.1%}) cannot be used, more than "
            f"--max-damaged-share {allowed_share:.1%}:\n{named}\nmend or remove them"
        )
    return (f"{len(damaged)} of {total} files are left out:\n{named}",)
