"""The set of benchmarks, one after the other.

Each runs in a process of its own, so that what one leaves behind (memory, threads that spin) does
not weigh on the next.
"""

import importlib
import multiprocessing
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

from benchmarks.figures import Findings
from benchmarks.options import Options

NAMES = (
    "serving", "plain", "pixels", "overhead", "overload", "cold_start", "reload", "engines",
    "preprocessing", "threads",
)  # fmt: skip
"""Modules with a `measure`."""


class Series(NamedTuple):
    """Findings by benchmark, and of those that came to no end why."""

    found: dict[str, Findings]
    failed: dict[str, str]


def measure_all(names: Sequence[str], options: Options) -> Series:
    found, failed = {}, {}
    for name in names:
        print(f"== {name}", flush=True)
        fresh = multiprocessing.get_context("spawn")
        try:
            with ProcessPoolExecutor(1, mp_context=fresh) as process:
                found[name] = process.submit(measure, name, options).result()
        except (Exception, SystemExit) as error:  # the others are worth their minutes
            failed[name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {failed[name]}", flush=True)
    return Series(found, failed)


def measure(name: str, options: Options) -> Findings:
    """Called in the process of the benchmark."""
    found: Findings = importlib.import_module(f"benchmarks.{name}").measure(options)
    return found
