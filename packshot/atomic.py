"""Files and folders that appear, and go, whole or not at all.

Everything is written under a hidden temporary name on the same file system, synced to disk and
renamed. A reader never sees half of it; a killed writer leaves a hidden leftover, never a result.
Leftovers are removed a day later, by whoever writes into the same folder then.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = ".unfinished-"
CLAIMED = ".claimed-"
REMOVED = ".removed-"
ABANDONED_AFTER_SECONDS = 24 * 3600


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yields an empty folder to fill; it becomes `target` when the block ends without an error.

    Raises FileExistsError if `target` exists by then and is not an empty folder.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    unfinished = Path(tempfile.mkdtemp(prefix=f"{UNFINISHED}{target.name}-", dir=target.parent))
    try:
        yield unfinished
        unfinished.chmod(0o755)
        for path in sorted(unfinished.rglob("*")):
            _sync(path)
        _sync(unfinished)
        _move_into_place(unfinished, target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def write_whole(target: Path, *parts: bytes | memoryview) -> None:
    """Replaces `target` by these bytes in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    handle, name = tempfile.mkstemp(prefix=f"{UNFINISHED}{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(target.parent)


def claim(target: Path) -> Path | None:
    """Takes the name of `target` for one writer: the claim, to be unlinked, or None if it is taken.

    It says nothing about whether `target` exists.
    """
    mark = target.with_name(f"{CLAIMED}{target.name}")
    while True:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target.parent)
        try:
            mark.touch(exist_ok=False)
        except FileExistsError:
            return None
        except FileNotFoundError:  # a writer that failed has just taken the empty folder away
            continue
        return mark


def remove_folder(target: Path, *, unless: Callable[[], bool]) -> bool:
    """Takes a folder away from readers in one step, then deletes it; returns whether it did.

    `unless` is asked in between: if it holds, the folder is put back.
    """
    hidden = Path(tempfile.mkdtemp(prefix=f"{REMOVED}{target.name}-", dir=target.parent))
    try:
        target.rename(hidden / target.name)
    except OSError as error:
        hidden.rmdir()
        if isinstance(error, FileNotFoundError):  # another was faster
            return False
        raise
    kept = True
    try:
        kept = unless()
    finally:
        if kept:
            (hidden / target.name).rename(target)
    shutil.rmtree(hidden)
    return not kept


def _sweep(folder: Path) -> None:
    """Removes what was left behind a day ago or earlier by programs that were killed."""
    for prefix in (UNFINISHED, CLAIMED, REMOVED):
        for leftover in folder.glob(f"{prefix}*"):
            with suppress(FileNotFoundError):  # just finished, or swept by another
                if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_SECONDS:
                    _remove(leftover)


def _remove(leftover: Path) -> None:
    if leftover.is_dir():
        shutil.rmtree(leftover, ignore_errors=True)
    else:
        leftover.unlink()


def _move_into_place(unfinished: Path, target: Path) -> None:
    try:
        unfinished.rename(target)
    except OSError as error:
        if not target.exists():
            raise
        raise FileExistsError(
            f"{target} exists already: remove it or choose another place"
        ) from error
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
