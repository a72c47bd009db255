"""Control groups as folders, and what the kernel would say of the process's own."""

from pathlib import Path

V2, V1 = "0::/", "5:cpu,cpuacct:/\n4:memory:/\n1:name=systemd:/system.slice\n"
"""Of a process that sees its group as the root, as in a container."""


class ControlGroups:
    """`given`: the parameters of what looks at them."""

    def __init__(self, folder: Path) -> None:
        self.given = self._mount, self._membership = folder / "cgroup", folder / "membership"
        self._mount.mkdir()

    def member_of(self, lines: str) -> None:
        self._membership.write_text(lines)

    def tell(self, file: str, text: str) -> None:
        path = self._mount / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
