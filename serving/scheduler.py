"""The queue in front of an engine: forms batches of whatever waits when a lane comes free.

Work-conserving: an idle lane takes what is there at once, so batches form only while lanes are
busy. Several lanes share what waits evenly: on a CPU two half batches on two cores beat one whole.
"""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np

from packshot.errors import DeadlineExceeded, Overloaded, ServiceFailed, Unavailable
from packshot.image import Pixels, stack
from packshot.prediction import Logits
from serving.engines import Engine
from serving.metrics import Metrics

log = logging.getLogger("packshot.scheduler")


@dataclass(order=True)
class Item:
    """One image in the queue, ordered by deadline. Its waiter owns `answer`."""

    deadline: float
    number: int
    pixels: Pixels = field(compare=False)
    answer: "asyncio.Future[Logits]" = field(compare=False)
    queued_at: float = field(compare=False)


class Scheduler:
    """Queues images, earliest deadline first, and runs them in the engine's lanes."""

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch: int,
        max_queued_images: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._max_images = max_queued_images
        self._metrics = metrics
        self._clock = clock
        self._queue: list[Item] = []
        self._numbers = itertools.count()
        self._taken_in = 0
        self._idle_lanes = 0
        self._work = asyncio.Event()
        self._closing = False
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="lane")
        self._lanes = [asyncio.create_task(self._serve_lane()) for _ in range(engine.lanes)]

    @contextmanager
    def admit(self, images: int) -> Iterator[None]:
        """Holds room for a request's images while it is decoded, queued and run.

        Raises Overloaded when there is none, Unavailable once the scheduler is closing.
        """
        if self._closing:
            raise Unavailable("the server is draining: send the request to another")
        if self._taken_in + images > self._max_images:
            self._metrics.refused("queue_full")
            raise Overloaded(
                f"{self._taken_in} images are in progress and at most {self._max_images} may be: "
                "try again later or lower the rate"
            )
        self._taken_in += images
        self._metrics.images_in_progress.set(self._taken_in)
        try:
            yield
        finally:
            self._taken_in -= images
            self._metrics.images_in_progress.set(self._taken_in)

    async def submit(self, pixels: Pixels, deadline: float) -> Logits:
        """Logits of one image. Raises DeadlineExceeded or ServiceFailed.

        `deadline` is on the scheduler's clock; cancelling the caller takes the image out.
        """
        answer: asyncio.Future[Logits] = asyncio.get_running_loop().create_future()
        item = Item(deadline, next(self._numbers), pixels, answer, self._clock())
        heapq.heappush(self._queue, item)
        self._work.set()
        return await answer

    async def close(self) -> None:
        """Runs what is queued, then ends the lanes and closes the engine."""
        self._closing = True
        self._work.set()
        await asyncio.gather(*self._lanes)
        self._threads.shutdown()
        self._engine.close()

    async def _serve_lane(self) -> None:
        while batch := await self._next_batch():
            await self._run(batch)

    async def _next_batch(self) -> list[Item]:
        """Waits for a batch; an empty one means that the lane should end."""
        self._idle_lanes += 1
        try:
            while not (batch := self._form_batch()) and not self._closing:
                self._work.clear()
                await self._work.wait()
            return batch
        finally:
            self._idle_lanes -= 1

    def _form_batch(self) -> list[Item]:
        self._drop_dead()
        share = -(-len(self._queue) // self._idle_lanes)
        return [heapq.heappop(self._queue) for _ in range(min(share, self._max_batch))]

    def _drop_dead(self) -> None:
        """Takes out what nobody waits for: cancelled, or past its deadline."""
        now = self._clock()
        alive: list[Item] = []
        for item in self._queue:
            if item.answer.done():
                self._metrics.refused("cancelled")
            elif item.deadline <= now:
                self._metrics.refused("expired")
                item.answer.set_exception(DeadlineExceeded("the deadline passed in the queue"))
            else:
                alive.append(item)
        if len(alive) < len(self._queue):
            heapq.heapify(alive)
            self._queue = alive

    async def _run(self, batch: list[Item]) -> None:
        started = self._clock()
        for item in batch:
            self._metrics.stage("queue", started - item.queued_at)
        self._metrics.batch_images.observe(len(batch))
        images = stack([item.pixels for item in batch])
        loop = asyncio.get_running_loop()
        try:
            logits = (await loop.run_in_executor(self._threads, self._engine.run, images)).logits
        except Exception:
            # Whatever the engine raised, it is this batch's misfortune only.
            log.exception("engine %s failed on a batch of %d", self._engine.name, len(batch))
            self._metrics.engine_failures.labels(self._engine.name).inc()
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(ServiceFailed("the engine failed"))
            return
        self._metrics.stage("infer", self._clock() - started)
        for item, row in zip(batch, np.asarray(logits), strict=True):
            if not item.answer.done():
                item.answer.set_result(row)
