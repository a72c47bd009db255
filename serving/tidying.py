"""Quiet moments: what malloc has kept is given back, and what is in use is no request's."""

import asyncio
from collections.abc import Callable

from serving.freed_memory import give_back
from serving.memory import Memory, malloced_bytes, resident_bytes

LOOK_SECONDS = 1.0
WORTH_BYTES = 64 << 20  # giving back locks the pools for some hundredths of a second


async def keep_tidy(idle: Callable[[], bool], silent: Callable[[], bool], memory: Memory) -> None:
    """Gives back what large requests have left while `idle`, as no image is in progress, and tells
    `memory` what is in use while `silent`, as no call is: else an upload might be. Never returns.
    """
    level = _not_in_use()
    while True:
        await asyncio.sleep(LOOK_SECONDS)
        if idle() and _not_in_use() > level + WORTH_BYTES:
            await asyncio.to_thread(give_back)
            level = max(level, _not_in_use())  # the rest is in pieces
        if silent():
            memory.settle()
        else:
            memory.settle_loaded()


def _not_in_use() -> int:
    """Resident without being in use: free memory that is kept, and what is not malloc's."""
    return resident_bytes() - (malloced_bytes() or 0)
