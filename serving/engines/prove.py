"""Proves an engine on the golden samples; the same runs warm it up and time it."""

import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from packshot.golden import GoldenSamples, check_answers
from packshot.prediction import Logits
from serving.engines import Engine, Profile

Rows: TypeAlias = npt.NDArray[np.intp]
"""Numbers of samples."""


class Proof(NamedTuple):
    """`golden_difference`: the largest |logit difference| from PyTorch, here and now."""

    golden_difference: float
    profile: Profile


def prove(engine: Engine, golden: GoldenSamples, *, tolerance: float, max_batch: int) -> Proof:
    """On the very engine and hardware that will serve, in each way that it will be used.

    Raises AnswersDiffer, and whatever the engine raises.
    """
    difference, lanes = _try(engine, golden, tolerance, max_batch, alone=False)
    alone: dict[int, float] = {}
    if largest_alone := min(engine.largest_alone, max_batch):
        difference_alone, alone = _try(engine, golden, tolerance, largest_alone, alone=True)
        difference = max(difference, difference_alone)
    return Proof(difference, Profile(lanes=lanes, alone=alone))


def _try(
    engine: Engine, golden: GoldenSamples, tolerance: float, largest: int, *, alone: bool
) -> tuple[float, dict[int, float]]:
    """The largest difference, and seconds by batch size, for every size up to `largest`."""
    # A core's lane is timed as it will run under load: beside the others.
    threads = 1 if alone or engine.lanes_share else engine.lanes
    timed = 1 if engine.one_by_one else largest
    batches = _batches(engine, timed, threads, samples=len(golden.pixels))
    with ThreadPoolExecutor(threads) as pool:
        runs = list(pool.map(partial(_timed, engine, alone, golden.pixels), batches))
    logits = np.concatenate([logits for logits, _ in runs])
    difference = check_answers(logits, golden.logits[np.concatenate(batches)], tolerance)
    times = [seconds for _, seconds in runs]
    if engine.one_by_one:
        return difference, one_after_the_other(times, largest)
    return difference, every_size(map(len, batches), times)


def _batches(engine: Engine, largest: int, threads: int, *, samples: int) -> list[Rows]:
    """Which samples run together, each of them once or more; a size's last run is its time."""
    sizes = _device_sizes(largest) if engine.lanes_share else _core_sizes(largest, threads)
    while (left := samples - sum(sizes)) > 0:
        sizes.append(min(left, largest))
    batches = np.split(np.resize(np.arange(samples), sum(sizes)), np.cumsum(sizes)[:-1])
    if engine.lanes_share:
        # Lanes take turns: each runs every sample. A size's first run plans and allocates.
        return [batch for batch in batches for _ in range(engine.lanes)]
    return batches


def _device_sizes(largest: int) -> list[int]:
    """Every one: a device plans anew for each."""
    return list(range(largest, 0, -1))


def _core_sizes(largest: int, threads: int) -> list[int]:
    """Doubling: on a core time grows evenly with the size. As many batches as keep all busy.

    First the largest for each thread: it allocates what the others use again.
    """
    doubling = sorted({largest, *(1 << power for power in range(largest.bit_length()))})
    times = -(-threads // len(doubling))
    return [largest] * threads + [size for size in reversed(doubling) for _ in range(times)]


def _timed(
    engine: Engine, alone: bool, pixels: npt.NDArray[np.uint8], rows: Rows
) -> tuple[Logits, float]:
    images = pixels[rows]
    started = time.monotonic()
    logits = engine.run(images, alone=alone).logits
    return logits, time.monotonic() - started


def one_after_the_other(seconds: Iterable[float], largest: int) -> dict[int, float]:
    """By batch size, of runs of one image: the median, as one of them may have been disturbed."""
    each = statistics.median(seconds)
    return {size: size * each for size in range(1, largest + 1)}


def every_size(sizes: Iterable[int], seconds: Iterable[float]) -> dict[int, float]:
    """Of a size that ran more than once the last run counts; between sizes it grows evenly."""
    timed = dict(sorted(dict(zip(sizes, seconds, strict=True)).items()))
    every = range(1, max(timed) + 1)
    return dict(zip(every, np.interp(every, [*timed], [*timed.values()]).tolist(), strict=True))
