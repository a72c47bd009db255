"""How much memory this process uses, and how much it may: what requests are taken in by."""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from packshot.control_group import CGROUP, MEMBERSHIP, limiting_folders

# Of cgroup v2, whose kernel stalls what goes beyond `memory.high`, and of v1.
LIMIT_FILES = ("memory.max", "memory.high", "memory.limit_in_bytes")
STATM = Path("/proc/self/statm")
SHARE = 0.4  # of what the models leave: what is on its way when that is used comes on top
SHARE_LOADING = 0.8
LEAST_BYTES = 64 << 20


class _MallocUsage(ctypes.Structure):
    """glibc's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    )  # fmt: skip


def resident_bytes() -> int:
    """Of this process; 0 where the system does not say."""
    with suppress(OSError), STATM.open("rb", buffering=0) as file:  # it is asked often
        pages = int(file.read(64).split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    return 0


def malloced_bytes() -> int | None:
    """What malloc has given out and not got back; None where it is not glibc's, or an old one.

    That takes it a tenth of a millisecond and more, as it counts what is free.
    """
    malloc = ctypes.CDLL(None)
    if not hasattr(malloc, "mallinfo2"):
        return None
    malloc.mallinfo2.restype = _MallocUsage
    usage = malloc.mallinfo2()
    given_out: int = usage.uordblks + usage.hblkhd
    return given_out


def memory_bytes(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """What this process may use: the least limit of its control group and those above it, or the
    machine's memory, if less. The parameters are those of `limiting_folders`.
    """
    limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    for folder in limiting_folders("memory", cgroup, membership):
        for name in LIMIT_FILES:
            with suppress(OSError, ValueError):  # "max": no limit
                limits.append(int((folder / name).read_text()))
    return min(limits)


class Memory:
    """Of this process: how much of it is for requests, and whether they use more.

    `total_bytes`: for all that it does. `loading`: whether a version of a model comes or goes,
    which takes some for a while. `kept`: bytes that are no request's, and grow while some are in
    progress.
    """

    def __init__(
        self,
        total_bytes: int,
        *,
        loading: Callable[[], bool] = lambda: False,
        kept: Callable[[], int] = lambda: 0,
    ) -> None:
        self._total_bytes = total_bytes
        self._loading = loading
        self._kept = kept
        self._loaded = False  # since what is not the requests' was last settled
        self._idle_resident = 0
        self._idle_in_use = 0
        self._idle_kept = 0

    def settle(self) -> None:
        """What is in use now is not the requests'. To be told when none is in progress."""
        self._loaded = False
        self._idle_resident, self._idle_in_use = resident_bytes(), _in_use()
        self._idle_kept = self._kept()

    def settle_loaded(self) -> None:
        """The same once loading has ended, requests or not: it may have taken some for good."""
        if self._loaded and not self._loading():
            self.settle()

    @property
    def most_bytes(self) -> int:
        """In use, with what no request has asked for."""
        self._loaded |= self._loading()
        share = SHARE_LOADING if self._loaded else SHARE
        grown = self._kept() - self._idle_kept
        left = int(share * (self._total_bytes - self._idle_resident - grown))
        return self._idle_in_use + grown + max(LEAST_BYTES, left)

    @property
    def short(self) -> bool:
        """More than that is in use: free memory that malloc has kept is not."""
        most = self.most_bytes
        # The kernel tells it ten times faster than malloc.
        return resident_bytes() > most and _in_use() > most


def _in_use() -> int:
    return malloced_bytes() or resident_bytes()
