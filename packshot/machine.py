"""The machine that a figure was taken on: without it nobody can read the figure."""

import os
import platform
import sys
from pathlib import Path

import msgspec

from packshot.cores import available_cores

CPU_INFO = Path("/proc/cpuinfo")
VNNI = frozenset({"avx512_vnni", "avx_vnni"})
TELLING = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
"""Instructions that decide how fast a network runs on a CPU."""


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`cores`: those that this process may use. `memory_bytes`: the machine's; 0 if unknown.

    `instructions`: of `TELLING` those that the CPU has.
    """

    processor: str
    cores: int
    memory_bytes: int
    kernel: str
    python: str
    instructions: tuple[str, ...] = ()

    def __str__(self) -> str:
        return (
            f"{self.processor}, {self.cores} cores, {self.memory_bytes / 1e9:.0f} GB, "
            f"{self.kernel}, Python {self.python}"
        )


def this_machine() -> Machine:
    return Machine(
        processor=_model_name(),
        cores=available_cores(),
        memory_bytes=_memory_bytes(),
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        instructions=tuple(name for name in TELLING if name in cpu_flags()),
    )


def processor() -> str:
    """The CPU's name and how many cores of it."""
    return f"{_model_name()}, {available_cores()} cores"


def has_vnni() -> bool:
    """Whether the CPU multiplies int8 in one instruction, which INT8 draws its speed from."""
    return not VNNI.isdisjoint(cpu_flags())


def cpu_flags() -> frozenset[str]:
    """What the CPU can do, in the words of /proc/cpuinfo; empty where it says nothing of it."""
    return frozenset(" ".join(_lines("flags")[:1]).split())


def _model_name() -> str:
    names = _lines("model name")
    return names[0] if names else platform.processor() or platform.machine()


def _lines(field: str) -> list[str]:
    """What the system says of each core; none where it has no such file."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    told = (line.split(":", 1) for line in lines if ":" in line)
    return [value.strip() for name, value in told if name.strip() == field]


def _memory_bytes() -> int:
    if sys.platform == "win32":
        return 0
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
