"""bench.json: what a run of the set found, and where and when that was."""

import datetime
import os
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.calm import stolen, ticks
from benchmarks.options import Options
from benchmarks.series import Series
from packshot import __version__
from packshot.atomic import write_whole
from packshot.machine import Machine, this_machine

PACKAGES = ("onnxruntime", "openvino", "grpcio", "numpy", "pillow", "protobuf", "uvloop")
ROOT = Path(__file__).parent.parent

Load = tuple[float, float, float]
"""Processes that want a core, over 1, 5 and 15 minutes."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """`load_before` tells how alone the run was; in `load_after` its own is counted too. `stolen`:
    share of the cores' time that other guests of the hardware had, from begin to end.

    `benchmarks`: by name, the figures and what was measured in each round. `failed`: those
    that came to no end, and why. `commit`: None outside of a checkout.
    """

    began: str
    ended: str
    machine: Machine
    load_before: Load
    load_after: Load
    stolen: float
    packshot: str
    commit: str | None
    packages: dict[str, str]
    options: Options
    benchmarks: dict[str, dict[str, Any]]
    failed: dict[str, str]


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Of a run."""

    began: str
    load: Load
    ticks: list[int]


def start() -> Start:
    return Start(began=_now(), load=os.getloadavg(), ticks=ticks())


def report(started: Start, options: Options, series: Series) -> Report:
    return Report(
        began=started.began,
        ended=_now(),
        machine=this_machine(),
        load_before=started.load,
        load_after=os.getloadavg(),
        stolen=stolen(started.ticks, ticks()),
        packshot=__version__,
        commit=_commit(),
        packages={name: version for name in PACKAGES if (version := _version_of(name))},
        options=options,
        benchmarks={name: findings.data for name, findings in series.found.items()},
        failed=series.failed,
    )


def write_report(path: Path, written: Report) -> None:
    text = msgspec.json.encode(written, enc_hook=str)  # paths
    write_whole(path, msgspec.json.format(text, indent=2) + b"\n")


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """With a "+" behind it if files differ from it."""
    try:
        head = _git("rev-parse", "HEAD")
        return f"{head}+" if _git("status", "--porcelain") else head
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*command: str) -> str:
    done = subprocess.run(["git", *command], cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
