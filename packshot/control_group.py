"""Where this process's limits are told: in its control group's folder, and in those above it."""

import os
from pathlib import Path, PurePosixPath

CGROUP = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def limiting_folders(
    controller: str, cgroup: Path = CGROUP, membership: Path = MEMBERSHIP
) -> list[Path]:
    """The process may use no more than the least that any of them tells.

    `controller` ("memory", "cpu") has a tree of its own in cgroup v1; in v2 one tree is for all.
    `cgroup` is where they are mounted. `membership` tells the process's group in each.
    """
    groups = _groups(membership) or {"": "/", controller: "/"}
    trees = {"": cgroup, controller: cgroup / controller}
    return [
        folder
        for name, root in trees.items()
        if name in groups
        for folder in _upward(root, groups[name])
    ]


def _groups(membership: Path) -> dict[str, str]:
    """Paths by controller, or "" for v2: lines are `0::/path`, and in v1 `4:cpu,cpuacct:/path`."""
    try:
        lines = membership.read_bytes().splitlines()
    except OSError:
        return {}
    groups: dict[str, str] = {}
    for line in lines:
        _, _, named = os.fsdecode(line).partition(":")
        controllers, _, path = named.partition(":")
        groups |= dict.fromkeys(controllers.split(","), path)
    return groups


def _upward(root: Path, path: str) -> list[Path]:
    """From the group's folder to the root's.

    A container may be told a path of its host's, or one beside its own root (`/../other`), which it
    cannot see: the root that it sees is then its group.
    """
    group = PurePosixPath(path.lstrip("/"))
    if ".." in group.parts or not os.access(root / group, os.F_OK):
        return [root]
    return [root / group, *(root / above for above in group.parents)]
