"""Files and folders that appear whole or not at all.

Everything is written under a hidden temporary name on the same file system, synced to disk and
renamed. A reader never sees half of it; a killed writer leaves a hidden leftover, never a result.
"""

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

UNFINISHED = ".unfinished-"
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


def write_whole(target: Path, content: bytes) -> None:
    """Replaces `target` by `content` in one step."""
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{target.name}-", dir=target.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(name).chmod(0o644)
        Path(name).replace(target)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    _sync(target.parent)


def _sweep(folder: Path) -> None:
    """Removes what writers that were killed a day ago or earlier left behind."""
    for leftover in folder.glob(f"{UNFINISHED}*"):
        if time.time() - leftover.stat().st_mtime > ABANDONED_AFTER_SECONDS:
            shutil.rmtree(leftover, ignore_errors=True)


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
