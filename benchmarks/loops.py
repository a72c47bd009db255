"""What a machine does with an engine and no server: no queue, no sockets, no protobuf."""

import itertools
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from benchmarks.measured import Measured
from packshot.image import Pixels, stack

Batches = Iterator[np.ndarray]
"""Endless."""


def batches(
    images: Sequence[bytes], size: int, pixels_of: Callable[[bytes], Pixels], *, first: int = 0
) -> Batches:
    """Of the images over and over, from number `first` on; each is made when it is asked for."""
    endless = itertools.cycle([*images[first:], *images[:first]])
    while True:
        yield stack([pixels_of(next(endless)) for _ in range(size)])


def in_lanes(
    run: Callable[[np.ndarray], object], of_lanes: Sequence[Batches], seconds: float
) -> Measured:
    """A thread for each: it makes a batch, runs it, makes the next. One alone is a serial loop."""
    counts = [0] * len(of_lanes)
    run(next(of_lanes[0]))  # the first run allocates memory
    started, cpu = time.perf_counter(), time.process_time()

    def lane(number: int) -> None:
        while time.perf_counter() < started + seconds:
            batch = next(of_lanes[number])
            run(batch)
            counts[number] += len(batch)

    lanes = [threading.Thread(target=lane, args=(number,)) for number in range(len(of_lanes))]
    for thread in lanes:
        thread.start()
    for thread in lanes:
        thread.join()
    return Measured(
        images_per_second=sum(counts) / (time.perf_counter() - started),
        cpu_ms=(time.process_time() - cpu) / sum(counts) * 1000,
    )
