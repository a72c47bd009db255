"""Models as a runtime compiled them for this CPU, kept from start to start.

Compiling takes a good part of a server's start. What is kept is named by all that it depends on,
and ends with its own hash: what is damaged is compiled anew.
"""

import hashlib
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from packshot.atomic import write_whole

log = logging.getLogger("packshot.engines")

Content: TypeAlias = npt.NDArray[np.uint8]

Kept: TypeAlias = Callable[[Callable[[], Content]], Content]
"""Returns what it is given returns, or returned at another time."""

KEPT = 8
"""Files: a model's versions and precisions; the ones not used for longest go first."""

SUFFIX = ".compiled"
DIGEST_BYTES = 32


def made_anew(compile_model: Callable[[], Content]) -> Content:
    """Keeps nothing."""
    return compile_model()


class CompiledModels:
    """A folder of them; several processes may use it at once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def get(self, made_of: tuple[str, ...], compile_model: Callable[[], Content]) -> Content:
        """What is kept of `made_of`, or what `compile_model` returns, which is then kept.

        A folder that cannot be read or written costs the time only.
        """
        name = f"{hashlib.sha256(repr(made_of).encode()).hexdigest()}{SUFFIX}"
        if (found := _read(self._folder / name)) is not None:
            return found
        content = compile_model()
        # Nobody waits for a slow disk, but a program that ends at once: no daemon.
        Thread(target=self._keep, args=(name, content), name="keep-compiled").start()
        return content

    def _keep(self, name: str, content: Content) -> None:
        try:
            write_whole(self._folder / name, b"".join((content.data, _digest(content))))
        except OSError as error:
            log.info("what was compiled is not kept: %s", error)
            return
        with suppress(FileNotFoundError):  # another process was faster
            kept = {path: path.stat().st_mtime for path in self._folder.glob(f"*{SUFFIX}")}
            for path in sorted(kept, key=lambda path: -kept[path])[KEPT:]:
                path.unlink()


def _read(path: Path) -> Content | None:
    """None if it is not there, cannot be read or is damaged."""
    try:
        found = np.fromfile(path, np.uint8)
    except OSError:
        return None
    content, digest = found[:-DIGEST_BYTES], found[-DIGEST_BYTES:]
    if _digest(content) != digest.tobytes():
        log.warning("%s is damaged: compiling anew", path)
        return None
    with suppress(OSError):
        os.utime(path)  # used now
    return content


def _digest(content: Content) -> bytes:
    return hashlib.sha256(content.data).digest()
