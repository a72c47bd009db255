"""Proves an engine on the golden samples; the same runs warm it up and time it."""

import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from packshot.golden import GoldenSamples, check_answers
from packshot.prediction import Logits
from serving.engines import Engine, Profile


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
    sizes = _sizes(engine, largest, samples=len(golden.pixels))
    order = np.resize(np.arange(len(golden.pixels)), sum(sizes))
    batches = np.split(golden.pixels[order], np.cumsum(sizes)[:-1])
    # A core's lane is timed as it will run under load: beside the others.
    threads = 1 if alone or engine.lanes_share else engine.lanes
    with ThreadPoolExecutor(threads) as pool:
        runs = list(pool.map(partial(_timed, engine, alone), batches))
    logits = np.concatenate([logits for logits, _ in runs])
    difference = check_answers(logits, golden.logits[order], tolerance)
    return difference, every_size(sizes, [seconds for _, seconds in runs])


def _sizes(engine: Engine, largest: int, *, samples: int) -> list[int]:
    """Of batches that time the engine and hold each sample once or more.

    A device plans anew for each size, so each is run. On a CPU time grows evenly with the size.
    The largest comes first: it allocates what the others use again.
    """
    every = range(1, largest + 1)
    doubling = {largest, *(1 << power for power in range(largest.bit_length()))}
    sizes = sorted(every if engine.lanes_share else doubling, reverse=True)
    while (left := samples - sum(sizes)) > 0:
        sizes.append(min(left, largest))
    return sizes


def _timed(engine: Engine, alone: bool, images: npt.NDArray[np.uint8]) -> tuple[Logits, float]:
    if engine.lanes_share:  # the first run of a size on a device plans and allocates
        engine.run(images, alone=alone)
    started = time.monotonic()
    logits = engine.run(images, alone=alone).logits
    return logits, time.monotonic() - started


def every_size(sizes: Iterable[int], seconds: Iterable[float]) -> dict[int, float]:
    """Of a size that ran more than once the last run counts; between sizes it grows evenly."""
    timed = dict(sorted(dict(zip(sizes, seconds, strict=True)).items()))
    every = range(1, max(timed) + 1)
    return dict(zip(every, np.interp(every, [*timed], [*timed.values()]).tolist(), strict=True))
