"""The queue in front of an engine: who is let in, in which order, and who runs together.

Deadline-native: a request is let in only if, as far as the latency model can tell, it can be
answered in time (Clockwork, OSDI 2020). The earliest deadline runs first, interactive requests
before bulk ones; what is cancelled or cannot be in time any more never reaches the engine (early
drop: Nexus, SOSP 2019).

Work-conserving: a free lane takes what is there at once, so batches form only while lanes are busy.
Several lanes share what waits evenly: on a CPU two half batches on two cores beat one whole.
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
from enum import IntEnum

from packshot.errors import DeadlineExceeded, Overloaded, ServiceFailed, Unavailable
from packshot.image import Pixels, stack
from packshot.prediction import Logits
from serving.engines import Engine
from serving.latency import Average, LatencyModel
from serving.metrics import Metrics

log = logging.getLogger("packshot.scheduler")

RETRY_AFTER_SECONDS = 0.25
CLOSE_TIMEOUT_SECONDS = 30.0


class Priority(IntEnum):
    """Bulk requests fill what interactive ones leave free, and are shed first."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A request that was let in. `pending`: its images that have not begun to run.

    Its owner sets `answered` when every image of it got an answer from the engine.
    """

    priority: Priority
    deadline: float
    images: int
    size: int
    pending: int
    admitted_at: float
    predicted_seconds: float
    answered: bool = False
    shed: bool = False

    @property
    def urgency(self) -> tuple[int, float]:
        """The lower, the sooner."""
        return (self.priority, self.deadline)


@dataclass(order=True)
class Item:
    """One image in the queue. Its waiter owns `answer`."""

    urgency: tuple[int, float]
    number: int
    ticket: Ticket = field(compare=False)
    pixels: Pixels = field(compare=False)
    answer: "asyncio.Future[Logits]" = field(compare=False)
    queued_at: float = field(compare=False)


class Scheduler:
    """Queues images and runs them in the engine's lanes. Lives on the event loop."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        *,
        max_queued_images: int,
        max_queued_bytes: int = 1 << 30,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._engine = engine
        self._latency = latency
        self._max_images = max_queued_images
        self._max_bytes = max_queued_bytes
        self._metrics = metrics
        self._clock = clock
        self._queue: list[Item] = []
        self._numbers = itertools.count()
        self._tickets: set[Ticket] = set()
        self._running: dict[int, float] = {}  # number of a batch -> when it should end
        self._correction = Average(1.0)
        self._idle_lanes = 0
        self._work = asyncio.Event()
        self._closing = False
        self._ended = False
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix="lane")
        self._lanes = [asyncio.create_task(self._serve_lane()) for _ in range(engine.lanes)]

    @contextmanager
    def admit(
        self,
        *,
        images: int,
        deadline: float,
        size: int = 0,
        decode_seconds: float = 0.0,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Iterator[Ticket]:
        """Holds room for a request, of `size` bytes, while it is decoded, queued and run.

        `decode_seconds`: how long its images will wait for and be in the decoders. Raises
        Overloaded if there is no room or it cannot be answered by `deadline` (on the scheduler's
        clock), Unavailable once the scheduler is closing.
        """
        if self._closing:
            raise Unavailable("the server is draining: send the request to another")
        now = self._clock()
        predicted = decode_seconds + self.predict_seconds(images, (priority, deadline))
        corrected, allowed = predicted * self._correction.high, deadline - now
        # With nothing else to do a request is tried: estimates that have become too high would
        # otherwise refuse everything, and never be corrected.
        untried = not self._tickets and allowed >= self._latency.fastest_run_seconds
        if corrected > allowed and not untried:
            self._metrics.requests_refused.labels("deadline").inc()
            raise Overloaded(
                f"the answer would take {corrected * 1000:.0f} ms and has {allowed * 1000:.0f} ms: "
                "try again later or allow more time",
                retry_after_seconds=corrected - max(0.0, allowed),
            )
        self._make_room(images, size, priority)
        ticket = Ticket(
            priority=priority, deadline=deadline, images=images, size=size, pending=images,
            admitted_at=now, predicted_seconds=predicted,
        )  # fmt: skip
        self._tickets.add(ticket)
        self._metrics.images_in_progress.set(self.images)
        try:
            yield ticket
        finally:
            self._learn(ticket)
            self._tickets.discard(ticket)
            self._metrics.images_in_progress.set(self.images)
            if not self._tickets:
                self._work.set()  # a lane may be waiting for this to end

    @property
    def images(self) -> int:
        """In progress: admitted, and neither answered nor shed."""
        return sum(ticket.images for ticket in self._tickets if not ticket.shed)

    def predict_seconds(self, images: int, urgency: tuple[int, float]) -> float:
        """Until `images` of that urgency would be run, if nothing more urgent comes."""
        lanes, now = self._engine.lanes, self._clock()
        busy = sum(max(0.0, end - now) for end in self._running.values())
        ahead = sum(t.pending for t in self._tickets if not t.shed and t.urgency <= urgency)
        shared = (busy + self._latency.work_seconds(ahead + images)) / lanes
        alone = self._latency.work_seconds(-(-images // lanes))
        return max(shared, alone)

    async def submit(self, ticket: Ticket, pixels: Pixels) -> Logits:
        """Logits of one image of an admitted request; cancelling the caller takes it out.

        Raises DeadlineExceeded, Overloaded (shed), ServiceFailed or Unavailable.
        """
        if self._ended:
            raise Unavailable("the server is shutting down")
        if ticket.shed:
            raise _shed()
        answer: asyncio.Future[Logits] = asyncio.get_running_loop().create_future()
        item = Item(ticket.urgency, next(self._numbers), ticket, pixels, answer, self._clock())
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

    def _learn(self, ticket: Ticket) -> None:
        """Compares what was predicted with what it took, or with the deadline that it missed."""
        now = self._clock()
        told = ticket.answered or now >= ticket.deadline
        if told and ticket.predicted_seconds > 0 and ticket.priority is Priority.INTERACTIVE:
            ratio = (now - ticket.admitted_at) / ticket.predicted_seconds
            self._correction.observe(ratio)
            self._metrics.prediction_ratio.observe(ratio)

    def _make_room(self, images: int, size: int, priority: Priority) -> None:
        """Sheds bulk requests, the latest deadline first, if interactive ones need their room."""
        held = [ticket for ticket in self._tickets if not ticket.shed]
        free_images = self._max_images - sum(ticket.images for ticket in held)
        free_bytes = self._max_bytes - sum(ticket.size for ticket in held)
        bulk = sorted((t for t in held if t.priority > priority), key=lambda t: -t.deadline)
        shed = []
        while (free_images < images or free_bytes < size) and bulk:
            shed.append(bulk.pop(0))
            free_images += shed[-1].images
            free_bytes += shed[-1].size
        if free_images < images or free_bytes < size:
            self._metrics.requests_refused.labels("queue_full").inc()
            raise Overloaded(
                f"there is room for {free_images} more images and {free_bytes} more bytes of at "
                f"most {self._max_images} and {self._max_bytes}: try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        for ticket in shed:
            self._shed(ticket)

    def _shed(self, ticket: Ticket) -> None:
        ticket.shed = True
        self._metrics.requests_refused.labels("shed").inc()
        for item in self._queue:
            if item.ticket is ticket and not item.answer.done():
                item.answer.set_exception(_shed())

    async def _serve_lane(self) -> None:
        while batch := await self._next_batch():
            await self._run(batch)

    async def _next_batch(self) -> list[Item]:
        """Waits for a batch; an empty one means that the lane should end."""
        self._idle_lanes += 1
        try:
            while not (batch := self._form_batch()) and not (self._closing and not self._tickets):
                self._work.clear()
                await self._work.wait()
            return batch
        finally:
            self._idle_lanes -= 1

    def _form_batch(self) -> list[Item]:
        self._drop_dead()
        share = -(-len(self._queue) // self._idle_lanes)
        batch = [heapq.heappop(self._queue) for _ in range(min(share, self._latency.largest))]
        for item in batch:
            item.ticket.pending -= 1
        return batch

    def _drop_dead(self) -> None:
        """Takes out what nobody waits for, and what would be late even if it ran at once."""
        soonest = self._clock() + self._latency.fastest_run_seconds
        alive: list[Item] = []
        for item in self._queue:
            if item.ticket.deadline >= soonest and not item.answer.done():
                alive.append(item)
                continue
            item.ticket.pending -= 1
            # A caller is told of its deadline by its own clock too: cancelled at it is expired.
            late = item.ticket.deadline < soonest
            self._metrics.images_dropped.labels("expired" if late else "cancelled").inc()
            if not item.answer.done():
                message = "the deadline would pass before the answer"
                item.answer.set_exception(DeadlineExceeded(message))
        if len(alive) < len(self._queue):
            heapq.heapify(alive)
            self._queue = alive

    async def _run(self, batch: list[Item]) -> None:
        started = self._clock()
        for item in batch:
            self._metrics.stage("queue", started - item.queued_at)
        self._metrics.batch_images.observe(len(batch))
        number = batch[0].number
        self._running[number] = started + self._latency.run_seconds(len(batch))
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
        finally:
            del self._running[number]
        seconds = self._clock() - started
        self._latency.observe(len(batch), seconds)
        self._metrics.stage("infer", seconds)
        for item, row in answers:
            if not item.answer.done():
                item.answer.set_result(row)


def _shed() -> Overloaded:
    return Overloaded(
        "this bulk request made room for interactive ones: try again later",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
