"""How many cores this process may use."""

import os


def available_cores() -> int:
    """Cores of the affinity mask; all of them where the system has none."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
