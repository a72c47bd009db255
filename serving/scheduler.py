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

from packshot.errors import DeadlineExceeded, Overloaded, ServiceFailed, Unavailable
from packshot.image import Pixels, stack
from packshot.prediction import Logits
from serving.engines import Engine
from serving.metrics import Metrics

log = logging.getLogger("packshot.scheduler")

RETRY_AFTER_SECONDS = 0.25
CLOSE_TIMEOUT_SECONDS = 30.0


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
        max_queued_bytes: int = 1 << 30,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._max_images = max_queued_images
        self._max_bytes = max_queued_bytes
        self._metrics = metrics
        self._clock = clock
        self._queue: list[Item] = []
        self._numbers = itertools.count()
        self._images = 0
        self._bytes = 0
        self._idle_lanes = 0
        self._work = asyncio.Event()
        self._closing = False
        self._ended = False
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="lane")
        self._lanes = [asyncio.create_task(self._serve_lane()) for _ in range(engine.lanes)]

    @contextmanager
    def admit(self, *, images: int, size: int = 0) -> Iterator[None]:
        """Holds room for a request, of `size` bytes, while it is decoded, queued and run.

        Raises Overloaded when there is none, Unavailable once the scheduler is closing.
        """
        if self._closing:
            raise Unavailable("the server is draining: send the request to another")
        if self._images + images > self._max_images or self._bytes + size > self._max_bytes:
            self._metrics.requests_refused.labels("queue_full").inc()
            raise Overloaded(
                f"{self._images} images of {self._bytes} bytes are in progress; at most "
                f"{self._max_images} of {self._max_bytes} may be: try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        self._hold(images, size)
        try:
            yield
        finally:
            self._hold(-images, -size)

    async def submit(self, pixels: Pixels, deadline: float) -> Logits:
        """Logits of one image of an admitted request. Raises DeadlineExceeded or ServiceFailed.

        `deadline` is on the scheduler's clock; cancelling the caller takes the image out.
        """
        if self._ended:
            raise Unavailable("the server is shutting down")
        answer: asyncio.Future[Logits] = asyncio.get_running_loop().create_future()
        item = Item(deadline, next(self._numbers), pixels, answer, self._clock())
        heapq.heappush(self._queue, item)
        self._work.set()
        return await answer

    async def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Answers what was admitted, then ends the lanes and closes the engine."""
        self._closing = True
        self._work.set()
        _, running = await asyncio.wait(self._lanes, timeout=timeout_seconds)
        self._ended = True
        for item in self._queue:
            if not item.answer.done():
                item.answer.set_exception(Unavailable("the server is shutting down"))
        if running:
            log.error("engine %s is still running after %g s", self._engine.name, timeout_seconds)
            for lane in running:
                lane.cancel()
            return
        self._threads.shutdown()
        self._engine.close()

    def _hold(self, images: int, size: int) -> None:
        self._images += images
        self._bytes += size
        self._metrics.images_in_progress.set(self._images)
        if self._images == 0:
            self._work.set()  # a lane may be waiting for this to end

    async def _serve_lane(self) -> None:
        while batch := await self._next_batch():
            await self._run(batch)

    async def _next_batch(self) -> list[Item]:
        """Waits for a batch; an empty one means that the lane should end."""
        self._idle_lanes += 1
        try:
            while not (batch := self._form_batch()) and not (self._closing and self._images == 0):
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
            if item.deadline > now and not item.answer.done():
                alive.append(item)
                continue
            # A caller is told of its deadline by its own clock too: cancelled at it is expired.
            reason = "expired" if item.deadline <= now else "cancelled"
            self._metrics.images_dropped.labels(reason).inc()
            if not item.answer.done():
                item.answer.set_exception(DeadlineExceeded("the deadline passed in the queue"))
        if len(alive) < len(self._queue):
            heapq.heapify(alive)
            self._queue = alive

    async def _run(self, batch: list[Item]) -> None:
        started = self._clock()
        for item in batch:
            self._metrics.stage("queue", started - item.queued_at)
        self._metrics.batch_images.observe(len(batch))
        loop = asyncio.get_running_loop()
        try:
            images = stack([item.pixels for item in batch])
            logits = (await loop.run_in_executor(self._threads, self._engine.run, images)).logits
            answers = list(zip(batch, logits, strict=True))
        except Exception:
            # Whatever went wrong, it is this batch's misfortune only: the lane goes on.
            log.exception("engine %s failed on a batch of %d", self._engine.name, len(batch))
            self._metrics.engine_failures.labels(self._engine.name).inc()
            for item in batch:
                if not item.answer.done():
                    item.answer.set_exception(ServiceFailed("the engine failed"))
            return
        self._metrics.stage("infer", self._clock() - started)
        for item, row in answers:
            if not item.answer.done():
                item.answer.set_result(row)
