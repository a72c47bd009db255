"""How many cores this process may use: what a container was given, not what the host has."""

import math
import os
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")


def available_cores(cgroup: Path = CGROUP) -> int:
    """Cores of the affinity mask, or as many as the control group's quota fills, if fewer.

    A quota of one and a half cores counts as two, as Go and the JVM count it: it can then be used
    up. `cgroup` is where the control group that the process sees as its root is mounted.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(cgroup: Path = CGROUP) -> float | None:
    """Cores of the control group's quota (cgroup v2 `cpu.max`, or v1), None without one."""
    try:
        allowed, period = (cgroup / "cpu.max").read_text().split()
    except (OSError, ValueError):
        allowed, period = _first_version(cgroup / "cpu")
    if not allowed.isdecimal() or not period.isdecimal() or int(period) == 0:
        return None  # "max", or -1 in the first version: no limit
    return int(allowed) / int(period)


def _first_version(folder: Path) -> tuple[str, str]:
    try:
        return (
            (folder / "cpu.cfs_quota_us").read_text().strip(),
            (folder / "cpu.cfs_period_us").read_text().strip(),
        )
    except OSError:
        return ("max", "max")
