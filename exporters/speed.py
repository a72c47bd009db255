"""How long the engines of a bundle take where they were exported, measured in turns.

In turns, because a machine's speed changes from one moment to the next: of figures that were taken
at different times only the noise can be compared.
"""

import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack

import msgspec
import numpy as np

from exporters.proof import Work, open_onnx
from packshot.bundle import PLAN, EngineFile, Timing, sha256_of
from packshot.image import Pixels
from packshot.machine import processor
from packshot.plan import largest_batch, read_sidecar, sidecar_path
from serving.engines import Engine
from serving.engines.compiled import CompiledModels
from serving.engines.gpu import probe_gpu
from serving.engines.tensorrt import open_plan

BATCHES = (1, 8, 32)
ROUNDS = {1: 9, 8: 5, 32: 3}
SPEED_UP = 2.5
"""INT8 over fp32 on a CPU with VNNI: what a fully integer graph reaches at least."""


def timed_engines(work: Work, files: Mapping[str, EngineFile]) -> dict[str, EngineFile]:
    """The entries with their timings; those that cannot run here stay without."""
    here = {name: file for name, file in files.items() if file.proved_by == "engine"}
    with ExitStack() as stack:
        engines = {}
        for name, file in here.items():
            engines[name] = _open(work, name, file)
            stack.callback(engines[name].close)
        found = timings(engines, work.golden.pixels)
    timed = {
        name: msgspec.structs.replace(file, timings=found[name], timed_on=_processor_of(file))
        for name, file in here.items()
    }
    return {**files, **timed}


def _open(work: Work, name: str, file: EngineFile) -> Engine:
    path = work.folder / file.file
    if not file.file.endswith(PLAN):
        # The file is the one that will be served: a server on this machine finds it compiled.
        folder = work.compiled_folder
        compiled = CompiledModels(folder, sha256_of(path)) if folder else None
        return open_onnx(path, name, compiled)
    max_batch = largest_batch(read_sidecar(sidecar_path(path)).profiles)
    return open_plan(path, max_batch=max_batch, image_shape=work.golden.pixels.shape[1:])


def _processor_of(file: EngineFile) -> str:
    return probe_gpu().name if file.file.endswith(PLAN) else processor()


def timings(engines: Mapping[str, Engine], images: Pixels) -> dict[str, tuple[Timing, ...]]:
    """Of each engine, at each of `BATCHES`. `images`: uint8 [N, crop, crop, 3], at least one."""
    found: dict[str, list[Timing]] = {name: [] for name in engines}
    for batch in BATCHES:
        feed = np.resize(images, (batch, *images.shape[1:]))
        for name, milliseconds in _in_turns(engines, feed, ROUNDS[batch]).items():
            found[name].append(Timing(batch=batch, milliseconds=milliseconds))
    return {name: tuple(times) for name, times in found.items()}


def _in_turns(engines: Mapping[str, Engine], feed: Pixels, rounds: int) -> dict[str, float]:
    """Median milliseconds of a run, the first of each not counted: it allocates memory."""
    taken: dict[str, list[float]] = {name: [] for name in engines}
    for number in range(rounds + 1):
        for name, engine in engines.items():
            started = time.perf_counter()
            engine.run(feed, alone=True)
            if number:
                taken[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(times) for name, times in taken.items()}


def speed_up(faster: tuple[Timing, ...], slower: tuple[Timing, ...]) -> float:
    """By how much, at the batch size where each is at its best."""
    best = [max(one.images_per_second for one in times) for times in (faster, slower)]
    return best[0] / best[1]
