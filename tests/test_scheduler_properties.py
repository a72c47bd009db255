"""Whatever comes in whatever order: nothing is lost, doubled, late, out of order or over the bound.

Hypothesis makes up arrivals for one or two models, cancellations, waiting, engine failures,
replacements, other versions and drains; time is the test's own, and a run of the engine ends when
the test says so.
"""

import asyncio
import threading
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from fakes import Clock
from hypothesis import given, settings
from hypothesis import strategies as st

from packshot.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    ServiceFailed,
    Unavailable,
)
from serving.admission import Priority, Ticket
from serving.cores import OVERDUE_SECONDS, Cores
from serving.engines import Answer, Images, Profile
from serving.lanes import Lanes, Picture
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.pipeline import all_of
from serving.scheduler import Scheduler

RUN_SECONDS = 0.1
MAX_IMAGES = 7
MAX_BYTES = 40
MAX_BATCH = 3
REFUSALS = (Overloaded, Unavailable, InvalidInput)
REFUSED_ONLY = (Unavailable, InvalidInput)
FAILURES = (DeadlineExceeded, ServiceFailed, Overloaded, Unavailable, InvalidInput)


class HeldEngine:
    """A run waits until the test lets it end, well or badly. `ran`: image numbers, by batch."""

    def __init__(self, name: str, lanes: int, clock: Clock) -> None:
        self.name, self.lanes, self.largest_alone = name, lanes, lanes // 2
        self.lanes_share, self.one_by_one = False, True
        self.clock = clock
        self.ran: list[tuple[float, list[int]]] = []
        self.held: list[tuple[threading.Event, list[bool]]] = []
        self.held_since: list[float] = []
        self.begun = threading.Semaphore(0)
        self.closed = False
        self.released = False
        self._lock = threading.Lock()

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        numbers = [number_of(image) for image in images]
        end, fails = threading.Event(), [False]
        with self._lock:
            self.ran.append((self.clock.now, numbers))
            if not self.released:
                self.held.append((end, fails))
                self.held_since.append(self.clock.now)
            else:
                end.set()
        assert end.wait(timeout=30)
        if fails[0]:
            raise RuntimeError("told to fail")
        logits = np.array(numbers, np.float32)[:, None]
        return Answer(logits, logits)

    def end_one(self, *, fails: bool) -> bool:
        with self._lock:
            if not self.held:
                return False
            end, outcome = self.held.pop(0)
            del self.held_since[0]
        outcome[0] = fails
        end.set()
        return True

    def release(self) -> None:
        with self._lock:
            self.released = True
            held, self.held, self.held_since = self.held, [], []
        for end, _ in held:
            end.set()

    def close(self) -> None:
        assert not self.held
        self.closed = True


def image_numbered(number: int) -> np.ndarray:
    return np.array([[[number >> 8, number & 255, 0]]], np.uint8)


FILE_SIZE = 1000


def is_encoded(number: int) -> bool:
    """Decoded by the lane that runs it."""
    return number % 2 == 0


def picture_numbered(number: int) -> Picture:
    return partial(image_numbered, number) if is_encoded(number) else image_numbered(number)


def number_of(image: np.ndarray) -> int:
    return int(image[0, 0, 0]) << 8 | int(image[0, 0, 1])


@dataclass
class Request:
    numbers: list[int]
    deadline: float
    priority: Priority
    size: int
    scheduler: Scheduler  # of the version that served when it came
    task: "asyncio.Task[list[float]] | None" = None
    ticket: Ticket | None = None
    refused: bool = False
    cancelled: bool = False
    given_up: frozenset[int] = frozenset()  # cancelled before it ran
    outcomes: list[object] = field(default_factory=list)


class World:
    """The schedulers of the models that serve, those before them, and everybody who asked them."""

    def __init__(self, lanes: int, models: int = 1) -> None:
        self.clock = Clock()
        self.lanes = lanes
        self.cores = Cores(lanes, self.clock)
        self.out: set[Scheduler] = set()
        self.draining = False
        self.engines: list[HeldEngine] = []
        self.all_lanes: list[Lanes] = []
        self.requests: list[Request] = []
        self.numbers = iter(range(1, 10_000))
        self.serving: list[Scheduler] = []
        self.schedulers: list[Scheduler] = []
        self.closing: list[asyncio.Task[None]] = []
        for _ in range(models):
            self.serving.append(self.another_version())

    def of(self, model: int) -> Scheduler:
        return self.serving[model % len(self.serving)]

    def another_engine(self) -> HeldEngine:
        self.engines.append(HeldEngine(f"engine-{len(self.engines)}", self.lanes, self.clock))
        return self.engines[-1]

    def another_version(self) -> Scheduler:
        new = Scheduler(
            self.another_engine(),
            self.latency(),
            max_queued_images=MAX_IMAGES,
            max_queued_bytes=MAX_BYTES,
            metrics=Metrics().of("colours"),
            cores=self.cores,
            clock=self.clock,
            on_failing=lambda: self.failing(new),
        )
        self.schedulers.append(new)
        self.all_lanes.append(new.lanes)
        return new

    def latency(self) -> LatencyModel:
        runs = dict.fromkeys(range(1, MAX_BATCH + 1), RUN_SECONDS)
        return LatencyModel(Profile(lanes=runs, alone=runs))

    def failing(self, scheduler: Scheduler) -> None:
        assert scheduler in self.serving, "of a version that is closing no engine is replaced"
        self.out.add(scheduler)

    async def arrive(
        self, images: int, seconds: float, priority: Priority, size: int = 1, model: int = 0
    ) -> None:
        numbers = [next(self.numbers) for _ in range(images)]
        deadline = self.clock.now + seconds
        request = Request(numbers, deadline, priority, size, self.of(model))
        self.requests.append(request)
        request.task = asyncio.create_task(self.ask(request))
        request.task.add_done_callback(lambda task: request.outcomes.append(outcome(task)))
        await settle()
        for scheduler in self.schedulers:
            held = [one for one in self.requests if one.scheduler is scheduler and is_held(one)]
            assert sum(len(one.numbers) for one in held) == scheduler.images <= MAX_IMAGES
            assert sum(one.size for one in held) <= MAX_BYTES

    async def ask(self, request: Request) -> list[float]:
        try:
            admitted = request.scheduler.admit(
                images=len(request.numbers), deadline=request.deadline, priority=request.priority,
                encoded=[FILE_SIZE for _ in filter(is_encoded, request.numbers)], size=request.size,
            )  # fmt: skip
            with admitted as request.ticket:
                answers = await all_of(
                    request.scheduler.submit(
                        request.ticket,
                        picture_numbered(number),
                        file_size=FILE_SIZE * is_encoded(number),
                    )
                    for number in request.numbers
                )
                request.ticket.answered = True
                return [float(answer.logits[0]) for answer in answers]
        except REFUSALS:
            request.refused = request.ticket is None
            raise

    async def cancel(self, which: int) -> None:
        waiting = [r for r in self.requests if not r.task.done()]
        if waiting:
            request = waiting[which % len(waiting)]
            ran = {n for engine in self.engines for _, batch in engine.ran for n in batch}
            request.cancelled = request.task.cancel()
            request.given_up = frozenset(request.numbers) - ran
            await settle()

    async def end_run(self, *, fails: bool) -> None:
        for engine in self.engines:
            if engine.end_one(fails=fails):
                await threads_rest(self)
                return

    async def replace(self) -> None:
        out, self.out = self.out, set()
        for scheduler in out:
            if not scheduler.closing:
                scheduler.take_over(self.another_engine(), self.latency())
                self.all_lanes.append(scheduler.lanes)
        await threads_rest(self)

    async def swap(self, model: int) -> None:
        """As `Models.put`: the one before answers what it let in, and is closed."""
        if not self.draining:
            old, place = self.of(model), model % len(self.serving)
            self.serving[place] = self.another_version()
            self.closing.append(asyncio.create_task(old.close()))
            await threads_rest(self)

    def drain(self) -> None:
        if not self.draining:
            self.draining = True
            self.closing += [asyncio.create_task(one.close()) for one in self.serving]

    def check_cores(self) -> None:
        """All are used while anything waits, and none twice, but where a run is overdue."""
        since = [at for engine in self.engines for at in engine.held_since]
        lately = [at for at in since if at + OVERDUE_SECONDS >= self.clock.now]
        assert len(lately) <= self.lanes
        if len(since) < self.lanes:
            assert not any(scheduler.next_item() for scheduler in self.schedulers)

    async def end(self) -> None:
        """Lets everything run out; afterwards nobody may be waiting."""
        await self.replace()
        self.drain()
        await settle()
        for engine in self.engines:
            engine.release()
        await asyncio.gather(*self.closing)
        await asyncio.gather(*(r.task for r in self.requests), return_exceptions=True)
        await settle()


def is_held(request: Request) -> bool:
    """Let in, and neither answered nor shed."""
    return request.ticket is not None and not request.ticket.shed and not request.task.done()


def outcome(task: asyncio.Task) -> object:
    if task.cancelled():
        return "cancelled"
    return task.exception() or task.result()


async def settle() -> None:
    for _ in range(12):
        await asyncio.sleep(0)


async def threads_rest(world: World) -> None:
    """Until every run that has begun either is held in its engine or has been told of."""
    while True:
        await settle()
        held = sum(len(engine.held) for engine in world.engines)
        if held == sum(lanes.running for lanes in world.all_lanes):
            return
        await asyncio.sleep(0.0005)


def check(world: World) -> None:
    ran = [number for engine in world.engines for _, batch in engine.ran for number in batch]
    assert len(ran) == len(set(ran)), "an image ran twice"
    begun = {n: at for e in world.engines for at, batch in e.ran for n in batch}
    for request in world.requests:
        assert len(request.outcomes) == 1, "each request has one outcome"
        (result,) = request.outcomes
        if isinstance(result, list):
            assert result == request.numbers, "its own answers, in its own order"
        else:
            assert result == "cancelled" or isinstance(result, FAILURES), result
            assert (result == "cancelled") == request.cancelled
        if request.ticket is not None:
            assert not isinstance(result, REFUSED_ONLY), "what was let in is not sent away"
        if request.refused:
            assert not set(request.numbers) & set(ran), "what was refused never runs"
        assert not request.given_up & set(ran), "what was cancelled never runs"
        for number in request.numbers:
            if number in begun:
                assert begun[number] <= request.deadline + 1e-9, "what is too late never runs"
    assert all(engine.closed for engine in world.engines)
    assert all(scheduler.images == 0 for scheduler in world.schedulers)


arrivals = st.tuples(
    st.just("arrive"),
    st.integers(1, 3),
    st.sampled_from([0.05, 0.3, 1.0, 5.0]),
    st.sampled_from(Priority),
    st.sampled_from([1, 10, MAX_BYTES, MAX_BYTES + 1]),
    st.integers(0, 1),
)
steps = st.one_of(
    *[arrivals] * 4,
    *[st.tuples(st.just("end_run"))] * 2,
    *[st.tuples(st.just("fail_run"))] * 2,
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 0.5])),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("replace")),
    st.tuples(st.just("swap"), st.integers(0, 1)),
)
plans = st.builds(
    lambda before, after: [*before, ("drain",), *after],
    st.lists(steps, min_size=30, max_size=80),
    st.lists(steps, max_size=10),
)


async def live(lanes: int, models: int, plan: list[tuple]) -> World:
    world = World(lanes, models)
    for name, *values in plan:
        if name == "arrive":
            await world.arrive(*values)
        elif name == "cancel":
            await world.cancel(*values)
        elif name == "wait":
            world.clock.now += values[0]
        elif name == "replace":
            await world.replace()
        elif name == "swap":
            await world.swap(*values)
        elif name == "drain":
            world.drain()
        elif name in ("end_run", "fail_run"):
            await world.end_run(fails=name == "fail_run")
        await threads_rest(world)
        world.check_cores()
    await world.end()
    return world


@settings(max_examples=150, deadline=None)
@given(lanes=st.integers(1, 3), models=st.integers(1, 2), plan=plans)
def test_nobody_is_lost_doubled_or_late(lanes: int, models: int, plan: list[tuple]):
    check(asyncio.run(asyncio.wait_for(live(lanes, models, plan), 60)))


@settings(max_examples=100, deadline=None)
@given(
    lanes=st.integers(1, 3),
    models=st.integers(1, 2),
    waiting=st.lists(
        st.tuples(st.floats(1.0, 90.0), st.sampled_from(Priority), st.integers(0, 1)),
        min_size=1,
        max_size=MAX_IMAGES,
    ),
)
def test_the_most_urgent_runs_first(
    lanes: int, models: int, waiting: list[tuple[float, Priority, int]]
):
    """Whichever core is free next takes what is most urgent then, of whichever model."""

    async def test() -> None:
        world = World(lanes, models)
        for _ in range(lanes):
            await world.arrive(1, 99.0, Priority.INTERACTIVE)
            await threads_rest(world)
        begun = {number for engine in world.engines for _, batch in engine.ran for number in batch}
        for seconds, priority, model in waiting[: MAX_IMAGES - lanes]:
            await world.arrive(1, seconds, priority, model=model)
        await threads_rest(world)
        urgency = {r.numbers[0]: (r.priority, r.deadline) for r in world.requests if not r.refused}
        order: list[tuple[Priority, float]] = []
        while any(engine.held for engine in world.engines):
            await world.end_run(fails=False)
            ran = {
                number for engine in world.engines for _, batch in engine.ran for number in batch
            }
            order += sorted(urgency[number] for number in ran - begun)
            begun |= ran
        assert order == sorted(order)
        await world.end()
        check(world)

    asyncio.run(asyncio.wait_for(test(), 60))
