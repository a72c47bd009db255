"""From the start of the process to ready, and the memory of a server at work.

The first start compiles the model, where the engine does that; the others find it compiled. Ready
means that the engine was opened, proved on the golden samples, warmed up and profiled. Held
against the least that a process with this file does: it imports onnxruntime, grpc and numpy, opens
one session and runs one image. In turns; the files are in the page cache on both sides.

    python -m benchmarks --only cold_start
"""

import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from benchmarks.calm import calm_rounds
from benchmarks.driven import Driven, drive, steady
from benchmarks.figures import Figure, Findings
from benchmarks.options import Options, cpu_engine
from benchmarks.process import Served, server
from packshot.load.pictures import photos

READY_SECONDS = 1.5
MEGABYTES = 300.0
LEAST = """
import sys
import grpc, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
(images, *_) = session.get_inputs()
session.run(None, {images.name: numpy.zeros((1, *images.shape[1:]), numpy.uint8)})
"""


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """Of a process: how long it took, and the CPU that it took."""

    seconds: float
    cpu_seconds: float


class Round(msgspec.Struct, frozen=True, kw_only=True):
    """`first`: compiles. `loaded`: the server that was started then, under load."""

    first: Start
    ready: Start
    least: Start
    loaded: Driven


def measure(options: Options) -> Findings:
    bundle, images = options.open_bundle(), photos(options.images)
    engine = cpu_engine(bundle)
    least_start(bundle.engine_path(engine))  # puts the files into the page cache

    def take() -> Round:
        least = least_start(bundle.engine_path(engine))
        with TemporaryDirectory() as compiled:
            start = partial(
                server, options.models, options.model, "--engines", engine, compiled=Path(compiled)
            )
            with start() as served:
                first = start_of(served)
            with start() as served:
                ready = start_of(served)
                loaded = drive(served, steady(served, options.seconds), images)
        return Round(first=first, ready=ready, least=least, loaded=loaded)

    rounds = calm_rounds(options.rounds_or(), take, partial(_line, engine))
    return Findings(figures=_figures(rounds), rounds=tuple(rounds))


def start_of(served: Served) -> Start:
    return Start(seconds=served.start_seconds, cpu_seconds=served.cpu_seconds())


def least_start(model: Path) -> Start:
    """From the start of the process to its end."""
    began, cpu = time.perf_counter(), _cpu_seconds_of_children()
    subprocess.run([sys.executable, "-c", LEAST, str(model)], check=True)
    return Start(seconds=time.perf_counter() - began, cpu_seconds=_cpu_seconds_of_children() - cpu)


def _cpu_seconds_of_children() -> float:
    """Of those that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _line(engine: str, found: Round) -> str:
    ready, least = found.ready, found.least
    return (
        f"{engine}: ready after {ready.seconds:.2f} s, {ready.cpu_seconds:.2f} of CPU, at the "
        f"first start {found.first.seconds:.2f} s; the least process takes {least.seconds:.2f} s, "
        f"{least.cpu_seconds:.2f} of CPU; "
        f"{found.loaded.megabytes:.0f} MB under load"
    )


def _figures(rounds: list[Round]) -> tuple[Figure, ...]:
    return (
        Figure(
            name="start to ready", unit="s", better="lower", bar=READY_SECONDS,
            rounds=tuple(found.ready.seconds for found in rounds),
        ),
        Figure(
            name="first start to ready", unit="s", better="lower",
            rounds=tuple(found.first.seconds for found in rounds),
        ),
        Figure(
            name="start to ready / imports, a session, one run: time", better="lower",
            rounds=tuple(found.ready.seconds / found.least.seconds for found in rounds),
        ),
        Figure(
            name="start to ready / imports, a session, one run: CPU", better="lower",
            rounds=tuple(found.ready.cpu_seconds / found.least.cpu_seconds for found in rounds),
        ),
        Figure(
            name="memory under load", unit="MB", better="lower", bar=MEGABYTES,
            rounds=tuple(found.loaded.megabytes for found in rounds),
        ),
    )  # fmt: skip
