"""The same load with versions being swapped under it, and without, in alternating rounds.

A copy of the served version stands beside it in a store of its own; `released` goes to and fro, and
as soon as the server has followed, on to the other. Loading, proving and warming up a version takes
its part of the cores, so that p99 rises; not one request may fail. Requests come at a rate, of half
of what the server does: those in flight alone would wait out each pause, and p99 tell of few.

    python -m benchmarks --only reload
"""

import itertools
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, drive, steady
from benchmarks.figures import Figure, Findings
from benchmarks.options import Options, cpu_engine
from benchmarks.process import Served, server
from packshot.bundle import GOLDEN, Bundle, write_bundle
from packshot.load import LoadPlan
from packshot.load.pictures import photos
from packshot.store import new_version, release, share

TIMES_AS_LONG = 3  # as other measurements: a swap takes seconds
SHARE_OF_PEAK = 0.5
LOOK_SECONDS = 0.1  # how often the server looks at the store, and this at the server
LONGEST_SWAP_SECONDS = 60.0


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`swap_seconds`: of each, from its release to the version's serving, under load."""

    quiet: Driven
    swapping: Driven
    swap_seconds: tuple[float, ...]

    @property
    def failed(self) -> int:
        return sum(self.swapping.errors.values()) + sum(self.swapping.image_errors.values())


def measure(options: Options) -> Findings:
    bundle, images = options.open_bundle(), photos(options.images)
    engine, model = cpu_engine(bundle), bundle.manifest.model
    look = ("--reload-seconds", str(LOOK_SECONDS))
    with tempfile.TemporaryDirectory() as folder:
        store = Path(folder)
        to_release = itertools.cycle([write_copy(bundle, store / model, engine) for _ in range(2)])
        release(store / model, next(to_release))
        # What is released is new to a server, and has to be compiled: nothing is kept here.
        nowhere = Path(os.devnull)
        with server(store, model, "--engines", engine, *look, compiled=nowhere) as served:
            drive(served, steady(served, options.seconds), images)  # warm
            peak = drive(served, steady(served, options.seconds), images).images_per_second
            plan = LoadPlan(
                target=served.target, rate=SHARE_OF_PEAK * peak, arrivals="constant", processes=1,
                seconds=TIMES_AS_LONG * options.seconds,
                warmup_seconds=0.0,  # which would not count: not one request may fail
            )  # fmt: skip

            def take() -> Round:
                quiet = drive(served, plan, images)
                with swapping(served, store / model, to_release) as swap_seconds:
                    loaded = drive(served, plan, images)
                return Round(quiet=quiet, swapping=loaded, swap_seconds=tuple(swap_seconds))

            rounds = calm_rounds(options.rounds_or(), take, partial(_line, engine))
    return Findings(figures=_figures(rounds), rounds=tuple(rounds))


def write_copy(bundle: Bundle, model: Path, engine: str) -> int:
    """The bundle with this engine alone as the next version of `model`; files are shared."""
    file = bundle.manifest.engines[engine]
    with new_version(model) as (version, folder):
        share((GOLDEN, file.file), bundle.folder, folder)
        manifest = msgspec.structs.replace(
            bundle.manifest, version=version, engines={engine: file}, left_out={}
        )
        write_bundle(folder, manifest)
    return version


@contextmanager
def swapping(served: Served, model: Path, to_release: Iterator[int]) -> Iterator[list[float]]:
    """One swap after the other until the block ends; the list holds how long each took."""
    taken: list[float] = []
    over = threading.Event()

    def swap() -> None:
        while not over.is_set():
            started = time.perf_counter()
            if release_and_wait(served, model, next(to_release)) and not over.is_set():
                taken.append(time.perf_counter() - started)

    thread = threading.Thread(target=swap)
    thread.start()
    try:
        yield taken
    finally:
        over.set()
        thread.join()


def release_and_wait(served: Served, model: Path, version: int) -> bool:
    """Whether the server followed in time. What is measured next finds it at rest."""
    before, started = swaps(served), time.perf_counter()
    release(model, version)
    while swaps(served) == before:
        if time.perf_counter() - started > LONGEST_SWAP_SECONDS:
            return False
        time.sleep(LOOK_SECONDS)
    return True


def swaps(served: Served) -> float:
    """Those that failed do not count."""
    return served.metric("packshot_reloads_total", result="swapped")


def _figures(rounds: list[Round]) -> tuple[Figure, ...]:
    return (
        Figure(
            name="versions swapped under load", better="higher", bar=1.0,
            rounds=tuple(float(len(found.swap_seconds)) for found in rounds),
        ),
        Figure(
            name="versions swapped under load: failed requests", better="lower", bar=0.0,
            rounds=tuple(float(found.failed) for found in rounds),
        ),
        Figure(
            name="versions swapped under load / not: p99", better="lower",
            rounds=tuple(
                found.swapping.latency_ms["p99"] / found.quiet.latency_ms["p99"] for found in rounds
            ),
        ),
    )  # fmt: skip


def _line(engine: str, found: Round) -> str:
    quiet, loaded = found.quiet, found.swapping
    took = ", ".join(f"{seconds:.1f}" for seconds in found.swap_seconds) or "none"
    return (
        f"{engine}: p99 {quiet.latency_ms['p99']:.0f} ms, {quiet.images_per_second:.1f} images/s; "
        f"while versions were swapped (seconds each: {took}) {loaded.latency_ms['p99']:.0f} ms, "
        f"{loaded.images_per_second:.1f} images/s, {loaded.answered} answered, "
        f"{found.failed} failed"
    )
