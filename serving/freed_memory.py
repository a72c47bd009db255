"""Memory that C libraries have freed: kept in few pools, not in one a thread."""

import asyncio
import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

M_ARENA_MAX = -8  # as glibc's malloc.h has it
LOOK_SECONDS = 1.0
WORTH_BYTES = 64 << 20  # giving back locks the pools for some hundredths of a second


def limit_pools(pools: int) -> None:
    """To be called before threads start. Does nothing where malloc is not glibc's.

    Up to eight pools a core, each of which keeps what one thread's decoder has freed, is glibc's
    own choice.
    """
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "mallopt"):
        malloc.mallopt(M_ARENA_MAX, pools)


def give_back() -> None:
    """What is free goes back to the system, where malloc is glibc's."""
    malloc = ctypes.CDLL(None)
    if hasattr(malloc, "malloc_trim"):
        malloc.malloc_trim(0)


async def keep_tidy(quiet: Callable[[], bool]) -> None:
    """Gives back what large requests have left, whenever nothing is in progress; never returns."""
    level = _resident_bytes()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        before = _resident_bytes()
        if quiet() and before > level + WORTH_BYTES:
            await asyncio.to_thread(give_back)
            left = _resident_bytes()
            if before - left < WORTH_BYTES:  # else there may soon be more, as connections end
                level = left


def _resident_bytes() -> int:
    """0 where the system does not say."""
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0
