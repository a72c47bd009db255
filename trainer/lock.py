"""One program at a time works on a run: another would remove weights that this one names."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packshot.errors import InvalidInput


@contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run's folder. Raises InvalidInput if another program does.

    The kernel lets go of it when this process ends, however that is. Where the file system knows no
    such locks, there is none.
    """
    folder = os.open(run, os.O_RDONLY)
    try:
        _lock(folder, run)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, run: Path) -> None:
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise InvalidInput(
            f"another program is at work on the run in {run}: wait for it, or name another --run"
        ) from error
    except OSError:
        return  # network file systems may know no locks on folders
