"""`packshot load` as a process, and the client processes that it starts."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from processes import ROOT, TIMEOUT
from tiny import PURE, jpeg

RED = jpeg(PURE["red"])
LOAD = (sys.executable, "-m", "packshot.cli", "load")


def load_command(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LOAD, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def waiting_signals(pid: int) -> set[int]:
    """That it was sent and has not been told of."""
    status = Path(f"/proc/{pid}/status").read_text()
    bits = int(status.split("ShdPnd:")[1].split()[0], 16)
    return {number for number in signal.valid_signals() if bits >> (number - 1) & 1}


def children(parent: int | str = "self") -> list[int]:
    """Client processes that it started."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    found = [int(each) for task in tasks for each in task.read_text().split()]
    return [pid for pid in found if b"packshot.load.sender" in command_of(pid)]


def command_of(pid: int) -> bytes:
    """Empty once it has ended, also if nobody has taken note of it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""
