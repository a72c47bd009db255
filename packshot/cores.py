"""How many cores this process may use: what a container was given, not what the host has."""

import math
import os
from pathlib import Path

from packshot.control_group import CGROUP, MEMBERSHIP, limiting_folders


def available_cores(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> int:
    """Cores of the affinity mask, or as many as the control group's quota fills, if fewer.

    A quota of one and a half cores counts as two, as Go and the JVM count it: it can then be used
    up. The parameters are those of `limiting_folders`.
    """
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    quota = cpu_quota(cgroup, membership)
    return cores if quota is None else max(1, min(cores, math.ceil(quota)))


def cpu_quota(cgroup: Path = CGROUP, membership: Path = MEMBERSHIP) -> float | None:
    """Cores of the least quota of the control group and those above it, None without one."""
    quotas = [_quota(folder) for folder in limiting_folders("cpu", cgroup, membership)]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(folder: Path) -> float | None:
    """Of one group: cgroup v2's `cpu.max`, or the two files of v1."""
    try:
        allowed, period = (folder / "cpu.max").read_text().split()
    except (OSError, ValueError):
        allowed, period = _first_version(folder)
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
