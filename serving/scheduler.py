"""The queue in front of an engine: in which order images run, and which run together.

The earliest deadline runs first, interactive requests before bulk ones; what is cancelled or cannot
be in time any more never reaches the engine (early drop: Nexus, SOSP 2019).

Work-conserving: a free lane takes what is there at once, so batches form only while lanes are busy.
Several lanes share what waits evenly: on a CPU two half batches on two cores beat one whole.
"""

import asyncio
import heapq
import itertools
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from packshot.errors import DeadlineExceeded, Overloaded, PackshotError, ServiceFailed, Unavailable
from serving.admission import RETRY_AFTER_SECONDS, Admission, Priority, Ticket, Urgency
from serving.engines import Answer, Engine
from serving.lanes import Lanes, Outcome, Picture
from serving.latency import Average, LatencyModel
from serving.metrics import ModelMetrics
from serving.stages import Stage

log = logging.getLogger("packshot.scheduler")

CLOSE_TIMEOUT_SECONDS = 30.0
FAILURES_TO_REPLACE = 3
COMPANY_FRESHNESS = 0.1  # about the last ten requests count


@dataclass(order=True)
class Item:
    """One image in the queue. Its waiter owns `answer`."""

    urgency: Urgency
    number: int
    ticket: Ticket = field(compare=False)
    picture: Picture = field(compare=False)
    answer: "asyncio.Future[Answer]" = field(compare=False)
    queued_at: float = field(compare=False)


@dataclass(kw_only=True)
class Batch:
    """Images that run together; `alone`: on all cores, as nothing else runs."""

    items: list[Item]
    alone: bool


class Scheduler:
    """Queues images and runs them in the engine's lanes. Lives on the event loop."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        *,
        max_queued_images: int,
        max_queued_bytes: int = 1 << 30,
        metrics: ModelMetrics,
        clock: Callable[[], float] = time.monotonic,
        on_failing: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_failing` is called when the engine has failed three times in a row.

        The engine then gets nothing more until `take_over` puts another in its place, or
        `carry_on` tells that there is none.
        """
        self._metrics = metrics
        self._clock = clock
        self._on_failing = on_failing
        self._admission = Admission(
            max_images=max_queued_images, max_bytes=max_queued_bytes, metrics=metrics, clock=clock
        )
        self._queue: list[Item] = []
        self._numbers = itertools.count()
        self._until: dict[int, float] = {}  # number of a batch -> when it should end
        self._company = 0.0  # share of requests, of late, that met others
        self._work = asyncio.Event()
        self._out = False
        self._closing = False
        self._ended = False
        self._old: list[asyncio.Task[None]] = []  # lanes of engines that were replaced
        self._start(engine, latency)

    def _start(self, engine: Engine, latency: LatencyModel) -> None:
        self._latency = latency
        self._decoding = Average()
        self.lanes = lanes = Lanes(engine, self._clock)
        self._serving = [asyncio.create_task(self._serve_lane(lanes)) for _ in range(engine.lanes)]

    @property
    def engine(self) -> Engine:
        return self.lanes.engine

    @property
    def lanes_decode(self) -> bool:
        """Each lane has a core of its own, and can as well decode what it runs."""
        return not self.engine.lanes_share

    @property
    def being_replaced(self) -> bool:
        """The engine failed, and gets nothing until another is in its place."""
        return self._out

    @property
    def images(self) -> int:
        """In progress: admitted, and neither answered nor shed."""
        return self._admission.images

    @contextmanager
    def admit(
        self,
        *,
        images: int,
        deadline: float,
        size: int = 0,
        encoded: int = 0,
        decode_seconds: float = 0.0,
        priority: Priority = Priority.INTERACTIVE,
    ) -> Iterator[Ticket]:
        """Holds room for a request, of `size` bytes, while it is queued, decoded and run.

        `encoded`: images that a lane will decode; `decode_seconds`: how long the others will wait
        for and be in the decoders before they come to the queue. Raises
        Overloaded if there is no room or it cannot be answered by `deadline` (on the scheduler's
        clock), Unavailable while the engine is being replaced and once the scheduler is closing.
        """
        if self._closing:
            raise Unavailable("the server is draining: send the request to another")
        if self._out:
            raise Unavailable(f"engine {self.engine.name} failed and is being replaced: try again")
        ticket = Ticket(
            priority=priority, deadline=deadline, images=images, encoded=encoded, size=size,
            pending=images, admitted_at=self._clock(),
            predicted_seconds=decode_seconds
            + self.predict_seconds(images, (priority, deadline), encoded),
        )  # fmt: skip
        self._company += COMPANY_FRESHNESS * ((not self._admission.empty) - self._company)
        fastest = self._latency.fastest_run_seconds
        for shed in self._admission.let_in(ticket, fastest_run_seconds=fastest):
            self._fail_queued(shed)
        try:
            yield ticket
        finally:
            self._admission.let_out(ticket)
            if self._admission.empty:
                self._work.set()  # a lane may be waiting for this to end

    def predict_seconds(self, images: int, urgency: Urgency, encoded: int = 0) -> float:
        """Until `images` of that urgency, `encoded` of them still to be decoded by a lane, would be
        run, if nothing more urgent comes.
        """
        each = self._decoding.value
        if self._admission.empty and self._runs_alone(images):
            return encoded * each + self._latency.run_seconds(images, alone=True)
        lanes = 1 if self.engine.lanes_share else self.engine.lanes
        now = self._clock()
        busy = sum(max(0.0, end - now) for end in self._until.values())
        ahead, encoded_ahead = self._admission.ahead(urgency)
        work = self._latency.work_seconds(ahead + images) + (encoded_ahead + encoded) * each
        alone = self._latency.work_seconds(-(-images // lanes)) - (-encoded // lanes) * each
        return max((busy + work) / lanes, alone)

    async def submit(self, ticket: Ticket, picture: Picture) -> Answer:
        """The answer to one image of an admitted request; cancelling the caller takes it out.

        Raises ImageError (if a lane had to decode it), DeadlineExceeded, Overloaded (shed),
        ServiceFailed or Unavailable.
        """
        if self._ended:
            raise Unavailable("the server is shutting down")
        if ticket.shed:
            raise _shed()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        item = Item(ticket.urgency, next(self._numbers), ticket, picture, answer, self._clock())
        heapq.heappush(self._queue, item)
        self._work.set()
        return await answer

    def take_over(self, engine: Engine, latency: LatencyModel) -> None:
        """`engine` answers from now on, also what is queued; the old one is closed in time."""
        if self._closing:
            engine.close()
            return
        old, serving = self.lanes, self._serving
        self._start(engine, latency)
        self._out = False
        self._work.set()  # the old lanes see that they have been replaced, and end
        self._old.append(asyncio.create_task(_end_lanes(old, serving, CLOSE_TIMEOUT_SECONDS)))

    def carry_on(self) -> None:
        """The failing engine goes on, as there is no other."""
        self._out = False
        self._work.set()

    async def close(self, timeout_seconds: float = CLOSE_TIMEOUT_SECONDS) -> None:
        """Answers what was admitted, then ends the lanes and closes the engine."""
        self._closing = True
        if self._out:  # nobody will come to replace the engine
            self.carry_on()
        self._work.set()
        await _end_lanes(self.lanes, self._serving, timeout_seconds)
        self._ended = True
        for item in self._queue:
            if not item.answer.done():
                item.answer.set_exception(Unavailable("the server is shutting down"))
        if self._old:
            await asyncio.wait(self._old)

    def _fail_queued(self, ticket: Ticket) -> None:
        for item in self._queue:
            if item.ticket is ticket and not item.answer.done():
                item.answer.set_exception(_shed())

    async def _serve_lane(self, lanes: Lanes) -> None:
        while batch := await self._next_batch(lanes):
            await self._run(lanes, batch)

    async def _next_batch(self, lanes: Lanes) -> Batch | None:
        """Waits for a batch; none means that the lane should end."""
        lanes.idle += 1
        try:
            while lanes is self.lanes and not (self._closing and self._admission.empty):
                if not self._out and (batch := self._form_batch(lanes)).items:
                    return batch
                self._work.clear()
                await self._work.wait()
            return None
        finally:
            lanes.idle -= 1

    def _form_batch(self, lanes: Lanes) -> Batch:
        self._drop_dead()
        waiting = len(self._queue)
        alone = self._runs_alone(waiting)
        whole = alone or lanes.engine.lanes_share
        share = waiting if whole else -(-waiting // lanes.idle)
        most = min(share, self._latency.largest)
        # A device takes little longer for a whole batch: there a small one would cost the others.
        items = self._pop(most) if whole else self._pop_in_time(most)
        for item in items:
            item.ticket.pending -= 1
        return Batch(items=items, alone=alone)

    def _pop(self, size: int) -> list[Item]:
        return [heapq.heappop(self._queue) for _ in range(size)]

    def _pop_in_time(self, most: int) -> list[Item]:
        """No more than let the most urgent be answered in time: answers come when all have run."""
        items = self._pop(min(1, most))
        if not items:
            return items
        left = items[0].ticket.deadline - self._clock() - self._decode_seconds(items[0])
        while len(items) < most:
            left -= self._decode_seconds(self._queue[0])
            if self._latency.run_seconds(len(items) + 1) > left:
                break
            items += self._pop(1)
        return items

    def _decode_seconds(self, item: Item) -> float:
        """In the lane, by the estimate."""
        return self._decoding.value if callable(item.picture) else 0.0

    def _runs_alone(self, images: int) -> bool:
        """On all cores at once: too little to keep the lanes busy, and nothing else runs."""
        # Splitting takes more CPU: where the next is likely to come meanwhile, that is missed.
        if self.lanes.running or self._company > 0.5:
            return False
        # Never more than a batch holds: on many cores the engine's bound is the larger one.
        return images <= min(self.engine.largest_alone, self._latency.largest)

    def _drop_dead(self) -> None:
        """Takes out what nobody waits for, and what would be late even if it ran at once.

        What would be late by the estimates gives way to what would not, and is no less urgent; what
        is left of it goes by the fastest run so far, or estimates that have become too high would
        never be corrected.
        """
        wanted = [item for item in self._queue if not item.answer.done()]
        soonest = self._clock() + self._latency.fastest_run_seconds
        in_time = self._in_time(wanted)
        priorities = {item.ticket.priority for item in in_time}
        kept = {item.number for item in in_time} | {
            item.number
            for item in wanted
            if item.ticket.deadline >= soonest
            and not any(other <= item.ticket.priority for other in priorities)
        }
        if len(kept) == len(self._queue):
            return
        for item in self._queue:
            if item.number not in kept:
                self._drop(item, soonest)
        self._queue = [item for item in self._queue if item.number in kept]
        heapq.heapify(self._queue)

    def _in_time(self, items: list[Item]) -> list[Item]:
        """By the estimates, if each ran at once."""
        if not items:
            return []
        done = self._clock() + self._latency.run_seconds(1, alone=self._runs_alone(len(items)))
        return [item for item in items if item.ticket.deadline >= done + self._decode_seconds(item)]

    def _drop(self, item: Item, soonest: float) -> None:
        item.ticket.pending -= 1
        # A caller is told of its deadline by its own clock too: cancelled at it is expired.
        cancelled = item.answer.done() and item.ticket.deadline >= soonest
        item.ticket.late |= not cancelled
        self._metrics.dropped("cancelled" if cancelled else "expired")
        if not item.answer.done():
            message = "the deadline would pass before the answer"
            item.answer.set_exception(DeadlineExceeded(message))

    async def _run(self, lanes: Lanes, batch: Batch) -> None:
        started, size = self._clock(), len(batch.items)
        pictures = [item.picture for item in batch.items]
        number = batch.items[0].number
        self._until[number] = started + self._predict_batch(batch)
        try:
            outcome = await lanes.run(pictures, alone=batch.alone)
        except Exception:
            # Whatever went wrong, it is this batch's misfortune only: the lane goes on.
            log.exception("engine %s failed on a batch of %d", lanes.engine.name, size)
            self._failed(lanes, batch)
            return
        finally:
            del self._until[number]
        if outcome.ran is not None:
            lanes.failures_in_a_row = 0
            self._learn(lanes, batch, outcome)
        for item, answer, decoded in zip(batch.items, *outcome[:2], strict=True):
            self._tell(item, lanes.engine.name, started, decoded, outcome.ran)
            if item.answer.done():
                continue
            if isinstance(answer, PackshotError):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)

    def _predict_batch(self, batch: Batch) -> float:
        run = self._latency.run_seconds(len(batch.items), alone=batch.alone)
        return run + sum(map(self._decode_seconds, batch.items))

    def _learn(self, lanes: Lanes, batch: Batch, outcome: Outcome) -> None:
        assert outcome.ran is not None
        seconds = outcome.ran.ended - outcome.ran.started
        ran = sum(not isinstance(answer, PackshotError) for answer in outcome.answers)
        self._metrics.batch_images.observe(ran)
        self._metrics.stage("infer", seconds)
        if lanes is self.lanes:
            self._latency.observe(ran, seconds, alone=batch.alone)
            for decoded in filter(None, outcome.decoded):
                self._decoding.observe(decoded.ended - decoded.started)

    def _tell(
        self, item: Item, engine: str, started: float, decoded: Stage | None, ran: Stage | None
    ) -> None:
        """What the item's request wants to know of its way."""
        queued = Stage("queue", item.queued_at, started)
        for stage in filter(None, (queued, decoded)):
            self._metrics.stage(stage.name, stage.ended - stage.started)
        item.ticket.engine = engine
        item.ticket.stages += filter(None, (queued, decoded, ran))

    def _failed(self, lanes: Lanes, batch: Batch) -> None:
        self._metrics.engine_failed(lanes.engine.name)
        for item in batch.items:
            if not item.answer.done():
                item.answer.set_exception(ServiceFailed("the engine failed"))
        lanes.failures_in_a_row += 1
        in_service = lanes is self.lanes and not self._closing
        if in_service and lanes.failures_in_a_row == FAILURES_TO_REPLACE:
            self._out = True
            self._on_failing()


async def _end_lanes(
    lanes: Lanes, serving: "list[asyncio.Task[None]]", timeout_seconds: float
) -> None:
    """Waits for the runs in progress, at most so long; closes the engine."""
    _, hanging = await asyncio.wait(serving, timeout=timeout_seconds)
    for lane in hanging:
        lane.cancel()
    await asyncio.to_thread(lanes.close)


def _shed() -> Overloaded:
    return Overloaded(
        "this bulk request made room for interactive ones: try again later",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
