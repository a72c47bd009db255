"""One image through ONNX Runtime: on one thread, on all, with threads that spin and that do not.

With a pause before each run, as at low load: that is where it matters.

    python -m benchmarks --only threads
"""

import statistics
import time
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


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """Milliseconds: the median of the runs, and the CPU that a run took."""

    wall_ms: float
    cpu_ms: float


Round = dict[str, Run]


def session(path: str, threads: int, spinning: bool) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(spinning)))
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def lone_runs(one: Any, image: np.ndarray) -> Run:
    taken = []
    cpu = time.process_time()
    for _ in range(RUNS):
        time.sleep(PAUSE_SECONDS)
        started = time.perf_counter()
        one.run(None, {INPUT: image})
        taken.append(time.perf_counter() - started)
    cpu = time.process_time() - cpu
    return Run(wall_ms=statistics.median(taken) * 1000, cpu_ms=cpu / RUNS * 1000)


def measure(options: Options) -> Findings:
    bundle = options.open_bundle()
    path, cores = str(bundle.engine_path(cpu_engine(bundle))), available_cores()
    image = np.random.default_rng(0).integers(0, 255, (1, *bundle.manifest.image.shape), np.uint8)
    ways = {ONE: (1, False), ALL: (cores, False), SPINNING: (cores, True)}
    sessions = {name: session(path, *way) for name, way in ways.items()}
    rounds = []
    for _ in range(options.rounds_or()):
        found = {name: lone_runs(one, image) for name, one in sessions.items()}  # alternating
        rounds.append(found)
        told = ", ".join(
            f"{name} {run.wall_ms:.1f} ms, {run.cpu_ms:.1f} of CPU" for name, run in found.items()
        )
        print(f"{Path(path).name} by ONNX Runtime: {told}", flush=True)
    return Findings(
        figures=(
            _time("a lone image: all threads / one, time", rounds, ALL, ONE),
            _time("a lone image: spinning / not, time", rounds, SPINNING, ALL),
            _cpu("a lone image: spinning / not, CPU", rounds, SPINNING, ALL),
        ),
        rounds=tuple(rounds),
    )


def _time(name: str, rounds: list[Round], over: str, under: str) -> Figure:
    ratios = tuple(found[over].wall_ms / found[under].wall_ms for found in rounds)
    return Figure(name=name, rounds=ratios, better="lower")


def _cpu(name: str, rounds: list[Round], over: str, under: str) -> Figure:
    ratios = tuple(found[over].cpu_ms / found[under].cpu_ms for found in rounds)
    return Figure(name=name, rounds=ratios, better="lower")
