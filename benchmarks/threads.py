"""One image through ONNX Runtime: on one thread, on all, with threads that spin and that do not.

And as many images as there are cores: in one run over all threads, and on a thread each. With a
pause before each run, as at low load: that is where it matters.

    python -m benchmarks --only threads
"""

import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnxruntime as ort

from benchmarks.figures import Figure, Findings
from benchmarks.options import Options, cpu_engine
from packshot.bundle import INPUT
from packshot.cores import available_cores

PAUSE_SECONDS = 0.01
RUNS = 40
ONE, ALL, SPINNING = "1 thread", "all threads", "all threads that spin"
TOGETHER, APART = "an image a core in one run", "each on its core"


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds: the median of the runs, and the CPU that a run took."""

    wall_ms: float
    cpu_ms: float


Round = dict[str, Run]


def session(path: str, threads: int, *, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def paused_runs(run: Callable[[], object]) -> Run:
    taken = []
    cpu = time.process_time()
    for _ in range(RUNS):
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        run()
        taken.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    return Run(wall_ms=statistics.median(taken) * 1000, cpu_ms=cpu / RUNS * 1000)


def measure(options: Options) -> Findings:
    bundle = options.open_bundle()
    path, cores = str(bundle.engine_path(cpu_engine(bundle))), available_cores()
    shape = (cores, *bundle.manifest.image.shape)
    images = np.random.default_rng(0).integers(0, 255, shape, np.uint8)
    one, spread = session(path, 1, spinning=False), session(path, cores, spinning=False)
    spinning = session(path, cores, spinning=True)
    rounds = []
    with ThreadPoolExecutor(cores) as lanes:
        ways = {
            ONE: partial(run, one, images[:1]),
            ALL: partial(run, spread, images[:1]),
            SPINNING: partial(run, spinning, images[:1]),
            TOGETHER: partial(run, spread, images),
            APART: lambda: list(lanes.map(partial(run, one), np.split(images, cores))),
        }
        for _ in range(options.rounds_or()):
            rounds.append({name: paused_runs(way) for name, way in ways.items()})  # alternating
            _tell(Path(path), rounds[-1])
    return Findings(
        figures=(
            _time("a lone image: all threads / one, time", rounds, ALL, ONE),
            _time("a lone image: spinning / not, time", rounds, SPINNING, ALL),
            _cpu("a lone image: spinning / not, CPU", rounds, SPINNING, ALL),
            _time("an image a core: one run / each on its core, time", rounds, TOGETHER, APART),
        ),
        rounds=tuple(rounds),
    )


def run(one: Any, images: np.ndarray) -> None:
    one.run(None, {INPUT: images})


def _tell(path: Path, found: Round) -> None:
    told = ", ".join(
        f"{name} {run.wall_ms:.1f} ms, {run.cpu_ms:.1f} of CPU" for name, run in found.items()
    )
    print(f"{path.name} by ONNX Runtime: {told}", flush=True)


def _time(name: str, rounds: list[Round], over: str, under: str) -> Figure:
    ratios = tuple(found[over].wall_ms / found[under].wall_ms for found in rounds)
    return Figure(name=name, rounds=ratios, better="lower")


def _cpu(name: str, rounds: list[Round], over: str, under: str) -> Figure:
    ratios = tuple(found[over].cpu_ms / found[under].cpu_ms for found in rounds)
    return Figure(name=name, rounds=ratios, better="lower")
