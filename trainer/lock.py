"""One program at a time works on a run: another would remove weights that this one names."""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from packshot.errors import InvalidInput

PATIENCE_SECONDS = 15.0
"""Loader processes hold the lock too, and notice within five seconds that their run was killed."""

LOOK_SECONDS = 0.1


@contextmanager
def locked(run: Path, patience_seconds: float = PATIENCE_SECONDS) -> Iterator[None]:
    """Holds the run's folder. Raises InvalidInput if another program does, and goes on doing so.

    The kernel lets go of it when this process ends, however that is. Where the file system knows no
    such locks, there is none.
    """
    folder = os.open(run, os.O_RDONLY)
    try:
        _lock(folder, run, time.monotonic() + patience_seconds)
        yield
    finally:
        os.close(folder)


def _lock(folder: int, run: Path, until: float) -> None:
    while True:
        try:
            return fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > until:
                raise InvalidInput(
                    f"another program is at work on the run in {run}: wait for it, or name "
                    "another --run"
                ) from error
        except OSError:
            return None  # network file systems may know no locks on folders
        time.sleep(LOOK_SECONDS)
