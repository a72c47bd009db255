"""Memory that C libraries have freed: kept in few pools, not in one a thread."""

import ctypes

M_ARENA_MAX = -8  # as glibc's malloc.h has it


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
