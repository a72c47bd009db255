"""Models as a runtime compiled them for this CPU, kept from start to start.

Compiling takes a good part of a server's start. What is kept is named by all that it depends on,
and ends with its own hash: what is damaged, or cannot be loaded, is compiled anew.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from threading import Thread
from typing import TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from packshot.atomic import write_whole

log = logging.getLogger("packshot.engines")

T = TypeVar("T")

Content: TypeAlias = npt.NDArray[np.uint8]

MOST_BYTES = 4 << 30  # of all models; a ResNet-50 in INT8 takes 25 MB. Those used last stay
UNUSED_SECONDS = 30 * 24 * 3600
SUFFIX = ".compiled"
DIGEST_BYTES = 32


class CompiledModels:
    """What was compiled of one file, in a folder for all; several processes may use it at once."""

    def __init__(self, folder: Path, source_sha256: str) -> None:
        self._folder = folder
        self._source = source_sha256

    def load(
        self,
        made_with: tuple[str, ...],
        compile_model: Callable[[], Content],
        load_model: Callable[[Content], T],
    ) -> T:
        """What `load_model` makes of what is kept, or of what is compiled, which is then kept.

        `made_with`: whatever else what is compiled depends on. A folder that cannot be read or
        written costs the time only.
        """
        name = hashlib.sha256(repr((self._source, *made_with)).encode()).hexdigest() + SUFFIX
        path = self._folder / name
        if (found := _read(path)) is not None:
            try:
                return load_model(found)
            except Exception as error:  # it may be a model that makes it fail: that is told below
                log.warning("%s cannot be loaded, compiling anew: %s", path, error)
        content = compile_model()
        loaded = load_model(content)
        with suppress(RuntimeError):  # no thread to be had
            # Neither a start nor an exit waits for a slow disk; nothing half-written is ever seen.
            Thread(target=_write, args=(path, content), name="keep-compiled", daemon=True).start()
        return loaded


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


def _write(path: Path, content: Content) -> None:
    try:
        write_whole(path, content.data, _digest(content))
        _prune(path.parent)
    except OSError as error:
        log.info("what was compiled is not kept in %s: %s", path.parent, error)


def _prune(folder: Path) -> None:
    found: dict[Path, os.stat_result] = {}
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(FileNotFoundError):  # another process was faster
            found[path] = path.stat()
    size = 0
    for path, file in sorted(found.items(), key=lambda one: -one[1].st_mtime):
        size += file.st_size
        if size > MOST_BYTES or time.time() - file.st_mtime > UNUSED_SECONDS:
            path.unlink(missing_ok=True)


def _digest(content: Content) -> bytes:
    return hashlib.sha256(content.data).digest()
