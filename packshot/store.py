"""The bundle store: models/<name>/<version>/, versions counting up from 1, never changed.

models/<name>/released   the version to serve; without this file the highest is served
models/<name>/history    versions that were released, one a line, the latest last: for rolling back
"""

import itertools
import os
import re
import reprlib
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from packshot.atomic import claim, remove_folder, whole_folder, write_whole
from packshot.errors import DamagedFile, InvalidInput, NotFound, PackshotError

RELEASED = "released"
HISTORY = "history"
WRITABLE = 0o222
READ_ONLY = 0o444
WHOLE_NUMBER = re.compile("[1-9][0-9]*")
"""Not "01", which would be looked for as 1."""
MAX_VERSION = 2**63 - 1
"""Answers tell it as int64."""
OF_ROOT = "lost+found"
"""In the root of a volume; nobody else may read it."""


def model_names(store: Path) -> list[str]:
    """Names of the models that have at least one version; hidden folders are none.

    Raises NotFound without a store, DamagedFile if it may not be read.
    """
    if not store.is_dir():
        raise NotFound(f"no model store at {store}: run `make export`, or name another folder")
    named = (path for path in _folders(store) if not path.name.startswith("."))
    return [path.name for path in named if path.name != OF_ROOT and versions(path)]


def versions(model: Path) -> list[int]:
    """Versions of one model's folder, ascending; hidden and half-written ones do not count.

    Nor do folders with a number above MAX_VERSION, a time to the microsecond, say.
    """
    if not model.is_dir():
        return []
    names = [path.name for path in _folders(model) if WHOLE_NUMBER.fullmatch(path.name)]
    return sorted(number for number in map(int, names) if number <= MAX_VERSION)


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir())
    except PermissionError as error:
        raise DamagedFile(
            f"{parent} cannot be read by user {os.getuid()}: let that user read the store, "
            "or serve as one who may"
        ) from error


def there_are(numbers: Sequence[int]) -> str:
    if len(numbers) < 2:
        return f"there is version {numbers[0]}" if numbers else "there is none"
    return f"there are versions {', '.join(map(str, numbers))}"


def current_version(model: Path) -> int:
    """The version to serve.

    Raises NotFound, or DamagedFile if `released` is no version's number or a link to nothing.
    """
    available = versions(model)
    if not available:
        raise NotFound(f"no version of a model in {model}: run `make export`")
    released = model / RELEASED
    text = _text_of(released)
    if text is None:
        return available[-1]
    version = _number_in(text)
    if version is None:
        raise DamagedFile(
            f"{released} holds {reprlib.repr(text)}; expected a version, {MAX_VERSION} at most; "
            f"{there_are(available)}: release one"
        )
    if version not in available:
        raise NotFound(f"{released} asks for version {text}; {there_are(available)}")
    return version


def _text_of(released: Path) -> str | None:
    """None if it is not there. Raises DamagedFile."""
    try:
        return released.read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        if not released.is_symlink():
            return None
        # Somebody chose a version: to serve the highest in its place would be a guess.
        raise DamagedFile(
            f"{released} is a link to {released.readlink()}, which is not there: "
            "mend the link, or release a version"
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{released} cannot be read: {error}") from error


def _number_in(text: str) -> int | None:
    """None if it is no number, or above MAX_VERSION."""
    # Python itself reads no more than 4300 digits.
    if not text.isdecimal() or len(text) > len(str(MAX_VERSION)):
        return None
    return int(text) if int(text) <= MAX_VERSION else None


def served_version(model: Path) -> int | None:
    """The version to serve; None where `current_version` raises."""
    try:
        return current_version(model)
    except PackshotError:
        return None


def previous_version(model: Path) -> int | None:
    """The version that was served before the current one: what `rollback` would release.

    The latest other one in the history of releases. Where no release was made, or none of those
    before is there any more, the highest below the current one: each was served when it was new,
    unless the server found it wanting. Raises as `current_version` does.
    """
    current = current_version(model)
    earlier = _earlier_releases(model, current)
    below = [version for version in versions(model) if version < current]
    return next(reversed(earlier or below), None)


def release(model: Path, version: int) -> None:
    """Makes `version` the one to serve, from now on whatever is added. Raises NotFound."""
    available = versions(model)
    if version not in available:
        raise NotFound(f"{model} has no version {version}; {there_are(available)}")
    before = served_version(model)  # None if `released` is damaged: this repairs it
    earlier = _history(model) if before is None else [*_history(model), before]
    _serve(model, version, history=[*earlier, version])


def rollback(model: Path) -> int:
    """Releases `previous_version` and returns it; again, and it goes one further back.

    Raises NotFound if there is none.
    """
    version = previous_version(model)
    if version is None:
        raise NotFound(
            f"nothing was served before version {current_version(model)} of {model}: "
            f"{there_are(versions(model))}"
        )
    _serve(model, version, history=[*_earlier_releases(model, current_version(model)), version])
    return version


@contextmanager
def new_version(model: Path) -> Iterator[tuple[int, Path]]:
    """Yields (version, folder to fill); the version appears if the block ends without an error.

    Its files are read-only then. The number is this writer's alone from the start; that of one
    who was killed stays unused for a day. Raises InvalidInput after MAX_VERSION.
    """
    new_model = not model.exists()
    version, mark = _claim_version(model)
    try:
        with whole_folder(model / str(version)) as folder:
            yield version, folder
            _make_read_only(folder)
    finally:
        mark.unlink(missing_ok=True)
        if new_model:
            with suppress(OSError):  # it is not empty: a version is there, or one is being written
                model.rmdir()


def check_writable(model: Path) -> None:
    """Before work that would be lost. Raises InvalidInput where no version can be written."""
    there = next(folder for folder in (model, *model.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise InvalidInput(f"{there} is no folder: name another store")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidInput(
            f"user {os.getuid()} cannot write to {there}: make it writable, or name another store"
        )


def share(files: Iterable[str], source: Path, target: Path) -> None:
    """Puts files of the version `source` into `target`, the folder of a version being written.

    A hard link where the file system allows one: no time and no space, and neither version can
    change, since the files of both are read-only. One that is writable, of a version that came
    from elsewhere, is copied, so that a write to it never reaches the new version.
    """
    for name in files:
        original = (source / name).resolve(strict=True)  # a link to a link would depend on it
        if original.stat().st_mode & WRITABLE or not _linked(original, target / name):
            shutil.copyfile(original, target / name)


def prunable(model: Path, *, keep: int) -> list[int]:
    """Versions that `prune` would remove: all but the newest `keep`, what is served, and what
    `rollback` would release.

    Raises InvalidInput for `keep` below 1: the highest number stays, so that none is used twice.
    """
    if keep < 1:
        raise InvalidInput(f"keep is {keep}; it must be 1 or more")
    kept = {*versions(model)[-keep:], current_version(model), previous_version(model)}
    return [version for version in versions(model) if version not in kept]


def prune(model: Path, *, keep: int) -> list[int]:
    """Removes the versions that are `prunable`; returns them."""
    chosen = prunable(model, keep=keep)
    return [version for version in chosen if remove_version(model, version)]


def remove_version(model: Path, version: int) -> bool:
    """Removes a version in one step, unless it is released by then; returns whether it did."""
    return remove_folder(model / str(version), unless=partial(_is_released, model, version))


def _make_read_only(folder: Path) -> None:
    """The files only: a folder must stay writable for its files to be removed."""
    for path in folder.rglob("*"):
        if path.is_file() and path.stat().st_mode & WRITABLE:
            path.chmod(READ_ONLY)


def _claim_version(model: Path) -> tuple[int, Path]:
    version = max(versions(model), default=0) + 1
    while version <= MAX_VERSION:
        mark = claim(model / str(version))
        if mark is not None:
            # Claimed by another until a moment ago, it may have appeared since we looked.
            if not (model / str(version)).exists():
                return version, mark
            mark.unlink()
        version += 1
    raise InvalidInput(
        f"{model} has version {MAX_VERSION}, the highest there can be: move it out of the store"
    )


def _serve(model: Path, version: int, *, history: Sequence[int]) -> None:
    released = model / RELEASED
    before = released.read_bytes() if released.exists() else None
    write_whole(released, f"{version}\n".encode())
    if not (model / str(version)).is_dir():
        # `prune` looks at `released` after it has hidden a version: one of us sees the other.
        _restore(released, before)
        raise NotFound(f"version {version} of {model} was removed at this moment")
    # Last: of a release that stopped half-way the history must not speak.
    lines = [f"{once}\n" for once, _ in itertools.groupby(history)]
    write_whole(model / HISTORY, "".join(lines).encode())


def _restore(released: Path, content: bytes | None) -> None:
    if content is None:
        released.unlink()
    else:
        write_whole(released, content)


def _is_released(model: Path, version: int) -> bool:
    try:
        return (model / RELEASED).read_text(encoding="utf-8").strip() == str(version)
    except FileNotFoundError:
        return False


def _history(model: Path) -> list[int]:
    """Empty if it cannot be read: a release must not fail for it."""
    try:
        lines = (model / HISTORY).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return []
    return [version for line in lines if (version := _number_in(line)) is not None]


def _earlier_releases(model: Path, current: int) -> list[int]:
    """Releases before the current one, of versions that are still there; none by default."""
    if not (model / RELEASED).exists():
        return []
    available = versions(model)
    earlier = [version for version in _history(model) if version in available]
    while earlier and earlier[-1] == current:
        earlier.pop()
    return earlier


def _linked(original: Path, name: Path) -> bool:
    """Whether a hard link could be made. Raises FileExistsError."""
    try:
        name.hardlink_to(original)
    except FileExistsError:
        raise
    except OSError:  # another file system, or one without hard links
        return False
    return True
