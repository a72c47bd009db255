"""An engine and those who wait for it: lets requests in, runs their images, tells the answers.

Work-conserving: a free lane takes what is there at once, so batches form only while lanes are busy.
Several lanes share what waits evenly: on a CPU two half batches on two cores beat one whole. The
cores are those of other models' lanes, too.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

from packshot.errors import DeadlineExceeded, Overloaded, PackshotError, ServiceFailed, Unavailable
from serving.admission import RETRY_AFTER_SECONDS, Admission, Priority, Ticket, Urgency
from serving.batching import Batch, Batching
from serving.bell import Bell
from serving.cores import Cores
from serving.engines import Answer, Engine
from serving.forecast import Forecast
from serving.lanes import Lanes, Outcome, Picture
from serving.latency import LatencyModel
from serving.metrics import ModelMetrics
from serving.stages import Stage
from serving.waiting import Item, Waiting

log = logging.getLogger("packshot.scheduler")

HANGS_SECONDS = 30.0  # an engine that is no longer wanted, in one run
DRAIN_SECONDS = 5.0  # after which what waits in an old version is the most urgent
FAILURES_TO_REPLACE = 3


State = Literal["serving", "being_replaced", "closing", "closed"]
"""being_replaced: the engine failed, and gets nothing until another is in its place."""


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
        cores: Cores | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_failing: Callable[[], None] = lambda: None,
    ) -> None:
        """`cores`: what lanes with a core each share with those of other models; none: nobody.

        `on_failing` is called when the engine has failed three times in a row.

        The engine then gets nothing more until `take_over` puts another in its place, or
        `carry_on` tells that there is none.
        """
        self._metrics = metrics
        self._clock = clock
        self._on_failing = on_failing
        self._admission = Admission(
            max_images=max_queued_images, max_bytes=max_queued_bytes, metrics=metrics, clock=clock
        )
        self._waiting = Waiting(metrics, clock)
        self._shared = cores
        self._work = Bell()  # for lanes that wait
        self._changed = asyncio.Event()  # somebody left, or the state is another
        self._state: State = "serving"
        self._since = clock()
        self._old: list[tuple[Lanes, asyncio.Task[None]]] = []  # of engines that were replaced
        self._start(engine, latency)

    def _start(self, engine: Engine, latency: LatencyModel) -> None:
        self._latency = latency
        self.lanes = lanes = Lanes(engine, self._clock)
        shared = None if engine.lanes_share else self._shared
        self.cores = shared or Cores(engine.lanes, self._clock, one_device=engine.lanes_share)
        self.cores.join(self)
        self._batching = Batching(engine, latency, self._waiting, self.cores, self._metrics)
        self.forecast = Forecast(
            engine, latency, self._admission, self._batching, self.cores, of=self
        )
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
        return self._state == "being_replaced"

    @property
    def seconds_replaced(self) -> float:
        """How long another engine has been sought; 0 if none is. May be asked from any thread."""
        return self._clock() - self._since if self.being_replaced else 0.0

    @property
    def left_behind(self) -> bool:
        """An engine hangs in a thread that cannot be ended."""
        return any(lanes.running for lanes in (self.lanes, *(old for old, _ in self._old)))

    @property
    def closing(self) -> bool:
        """Nothing new is let in, and no engine may take over."""
        return self._state in ("closing", "closed")

    def _become(self, state: State) -> None:
        self._since = self._clock()  # first: who sees the state, in another thread, sees its time
        self._state = state
        self._changed.set()
        self._work.ring_for_all()

    @property
    def images(self) -> int:
        """In progress: admitted, and neither answered nor shed."""
        return self._admission.images

    async def room(self, *, images: int, size: int) -> None:
        """Until `admit` has something better to say than that it is full."""
        while self._state == "serving" and not self._admission.has_room(images=images, size=size):
            self._changed.clear()
            await self._changed.wait()

    @contextmanager
    def admit(
        self,
        *,
        images: int,
        deadline: float,
        size: int = 0,
        encoded: Sequence[int] = (),
        decode_seconds: float = 0.0,
        priority: Priority = Priority.INTERACTIVE,
        stages: list[Stage] | None = None,
    ) -> Iterator[Ticket]:
        """Holds room for a request, of `size` bytes, while it is queued, decoded and run.

        `encoded`: bytes of each image that a lane will decode; `decode_seconds`: how long the
        others will wait for and be in the decoders before they come to the queue; `stages` is told
        what its images went through. Raises Overloaded if there is no room or it cannot be answered
        by `deadline` (on the scheduler's clock), Unavailable while the engine is being replaced and
        once the scheduler is closing.
        """
        if self.closing:
            raise Unavailable("the server is draining: send the request to another")
        if self.being_replaced:
            raise Unavailable(f"engine {self.engine.name} failed and is being replaced: try again")
        in_lanes = sum(map(self._latency.decoding.seconds, encoded))
        urgency = (priority, deadline)
        ticket = Ticket(
            priority=priority, deadline=deadline, images=images, decode_seconds=in_lanes, size=size,
            pending=images, admitted_at=self._clock(), stages=[] if stages is None else stages,
            predicted_seconds=decode_seconds + self.forecast.seconds(images, urgency, in_lanes),
        )  # fmt: skip
        self._batching.request_came(priority)
        at_best = self.forecast.at_best_seconds(images, urgency)
        for shed in self._admission.let_in(ticket, at_best_seconds=at_best):
            self._fail_queued(shed)
        try:
            yield ticket
        finally:
            self._admission.let_out(ticket)
            self._changed.set()
            if self._admission.empty:
                self._work.ring_for_all()  # lanes may be waiting for this to end

    @property
    def occupied(self) -> bool:
        return not (self._admission.empty or self._stuck)

    @property
    def _stuck(self) -> bool:
        """Nothing of it will run soon."""
        return self.being_replaced or self.cores.overdue(self) >= self.engine.lanes

    def next_item(self) -> Item | None:
        return self._waiting.first() if self.lanes.idle and not self.being_replaced else None

    def seconds_ahead(self, urgency: Urgency) -> float:
        return 0.0 if self._stuck else self.forecast.seconds_ahead(urgency)

    def wake(self) -> None:
        self._work.ring_for_one()

    async def submit(self, ticket: Ticket, picture: Picture, *, file_size: int = 0) -> Answer:
        """The answer to one image of an admitted request; cancelling the caller takes it out.

        `file_size`: of a picture that a lane has to decode, in bytes. Raises ImageError (if a lane
        had to decode it), DeadlineExceeded, Overloaded (shed), ServiceFailed or Unavailable.
        """
        if self._state == "closed":
            raise Unavailable("the server is shutting down")
        if ticket.shed:
            raise _shed()
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.put(ticket, picture, answer, file_size)
        self.wake()
        try:
            return await answer
        finally:
            # An error that it holds has this frame in its traceback, and with it the image: a
            # circle that nobody frees before the garbage collector comes round.
            del answer

    def take_over(self, engine: Engine, latency: LatencyModel) -> None:
        """`engine` answers from now on, also what is queued; the old one is closed in time."""
        assert not self.closing
        old, serving = self.lanes, self._serving
        self.cores.leave(self)
        self._start(engine, latency)
        self._become("serving")  # the old lanes see that they have been replaced, and end
        self._old.append((old, asyncio.create_task(_end_lanes(old, serving, HANGS_SECONDS))))

    def carry_on(self) -> None:
        """The failing engine goes on, as there is no other."""
        if self.being_replaced:
            self._become("serving")

    async def close(self, hangs_seconds: float = HANGS_SECONDS) -> None:
        """Answers what was admitted, however long that takes, and closes the engine.

        One that is in a single run for `hangs_seconds` is left behind; what it had is failed.
        """
        self._become("closing")  # also if the engine is out: nobody will come to replace it
        # Bulk would wait for as long as others have interactive requests.
        self._admission.hurry(self._clock() + DRAIN_SECONDS)
        self._waiting.reorder()
        try:
            await _end_lanes(self.lanes, self._serving, hangs_seconds)
        finally:
            self.cores.leave(self)
        self._become("closed")
        _fail(self._waiting, lambda: Unavailable("the server is shutting down"))
        if self._old:
            await asyncio.wait({ending for _, ending in self._old})

    def _fail_queued(self, ticket: Ticket) -> None:
        _fail((item for item in self._waiting if item.ticket is ticket), _shed)

    async def _serve_lane(self, lanes: Lanes) -> None:
        while batch := await self._next_batch(lanes):
            await self._run(lanes, batch)
            del batch  # with its images: the next may not come soon
        self.cores.wake_blocked()  # by what it would have run

    async def _next_batch(self, lanes: Lanes) -> Batch | None:
        """Waits for a batch; none means that the lane should end."""
        lanes.idle += 1
        try:
            while lanes is self.lanes and not (self.closing and self._admission.empty):
                if not self.being_replaced and (batch := self._batching.form(lanes.idle)):
                    if self._waiting:
                        self.wake()
                    return batch
                await self._work.wait()
            return None
        finally:
            lanes.idle -= 1

    async def _run(self, lanes: Lanes, batch: Batch) -> None:
        started, size = self._clock(), len(batch.items)
        pictures = [item.picture_if_wanted(self._clock) for item in batch.items]
        seconds, width = self._batching.predict_seconds(batch), lanes.engine.lanes
        try:
            with self.cores.hold(self, seconds, width=width if batch.alone else 1):
                outcome = await lanes.run(pictures, alone=batch.alone)
        except Exception:
            # Whatever went wrong, it is this batch's misfortune only: the lane goes on.
            log.exception("engine %s failed on a batch of %d", lanes.engine.name, size)
            self._failed(lanes, batch)
            return
        except asyncio.CancelledError:
            _fail(batch.items, lambda: ServiceFailed("the engine hangs"))
            raise
        if outcome.ran is not None:
            lanes.failures_in_a_row = 0
            self._learn(lanes, batch, outcome)
        for item, answer, decoded in zip(batch.items, *outcome[:2], strict=True):
            if isinstance(answer, DeadlineExceeded):
                self._waiting.give_up(item, self._clock())
                continue
            self._tell(item, lanes.engine.name, started, decoded, outcome.ran)
            if item.answer.done():
                continue
            if isinstance(answer, PackshotError):
                item.answer.set_exception(answer)
            else:
                item.answer.set_result(answer)

    def _learn(self, lanes: Lanes, batch: Batch, outcome: Outcome) -> None:
        assert outcome.ran is not None
        seconds = outcome.ran.ended - outcome.ran.started
        ran = sum(not isinstance(answer, PackshotError) for answer in outcome.answers)
        self._metrics.batch_ran(ran)
        self._metrics.stage("infer", seconds)
        if lanes is self.lanes:
            self._latency.observe(ran, seconds, alone=batch.alone)
            for item, decoded in zip(batch.items, outcome.decoded, strict=True):
                if decoded is not None:
                    seconds = decoded.ended - decoded.started
                    self._latency.decoding.observe(item.file_size, seconds)

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
        _fail(batch.items, lambda: ServiceFailed("the engine failed"))
        lanes.failures_in_a_row += 1
        in_service = lanes is self.lanes and not self.closing
        if in_service and lanes.failures_in_a_row == FAILURES_TO_REPLACE:
            self._become("being_replaced")
            self._on_failing()


async def _end_lanes(
    lanes: Lanes, serving: "list[asyncio.Task[None]]", hangs_seconds: float
) -> None:
    """Waits until they have nothing more to do, or are in one run for so long."""
    busy = set(serving)
    while busy and (left := hangs_seconds - lanes.longest_run()) > 0:
        _, busy = await asyncio.wait(busy, timeout=left)
    for lane in busy:
        lane.cancel()
    if busy:
        await asyncio.wait(busy)
    await lanes.close()


def _fail(items: Iterable[Item], error: Callable[[], PackshotError]) -> None:
    """Those that nobody has answered, each with an error of its own: a raised one has a history."""
    for item in items:
        if not item.answer.done():
            item.answer.set_exception(error())


def _shed() -> Overloaded:
    return Overloaded(
        "this bulk request made room for interactive ones: try again later",
        retry_after_seconds=RETRY_AFTER_SECONDS,
    )
