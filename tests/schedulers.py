"""Schedulers on a fake engine, and requests of one image to them."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
from fakes import Clock, FakeEngine, image_of

from serving.access_log import AccessLog
from serving.admission import Priority
from serving.api.calls import Calls
from serving.api.receiving import Receiving
from serving.cores import Cores
from serving.engines import Profile
from serving.latency import LatencyModel
from serving.memory import Memory
from serving.metrics import Metrics
from serving.scheduler import Scheduler

LATER = time.monotonic() + 3600


def instant(max_batch: int) -> LatencyModel:
    """Predicts that everything is done at once: nothing is refused for its deadline."""
    runs = dict.fromkeys(range(1, max_batch + 1), 0.0)
    return LatencyModel(Profile(lanes=runs, alone=runs))


def scheduler_of(
    engine: FakeEngine, latency: LatencyModel, max_queued_images: int = 100, **options: object
) -> Scheduler:
    metrics = Metrics().of("colours")
    return Scheduler(
        engine, latency, max_queued_images=max_queued_images, metrics=metrics, **options
    )


def timed(engine: FakeEngine, profile: dict[int, float], clock: Clock) -> Scheduler:
    """A scheduler that reads the test's clock; `profile`: seconds of a run by batch size."""
    return scheduler_of(engine, LatencyModel(Profile(lanes=profile)), clock=clock)


def calls_of(metrics: Metrics, memory: Memory = Memory(1 << 50)) -> Calls:
    receiving = Receiving(memory, metrics)
    return Calls(metrics, AccessLog(0, metrics), None, receiving, most=100)


def seconds_a_run(seconds: float) -> LatencyModel:
    return LatencyModel(Profile(lanes={1: seconds}))


def sharing(cores: Cores, clock: Clock, *engines: FakeEngine) -> list[Scheduler]:
    return [
        scheduler_of(engine, seconds_a_run(0.1), clock=clock, cores=cores) for engine in engines
    ]


async def closed(schedulers: list[Scheduler], *engines: FakeEngine) -> None:
    for engine in engines:
        engine.gate.set()
    await asyncio.gather(*(scheduler.close() for scheduler in schedulers))


@asynccontextmanager
async def scheduling(
    engine: FakeEngine, *, max_batch: int = 4, max_queued_images: int = 100, **options: object
):
    scheduler = scheduler_of(engine, instant(max_batch), max_queued_images, **options)
    try:
        yield scheduler
    finally:
        engine.gate.set()
        await scheduler.close()


async def ask(
    scheduler: Scheduler,
    value: int,
    deadline: float = LATER,
    priority: Priority = Priority.INTERACTIVE,
) -> np.ndarray:
    """A request of one image."""
    with scheduler.admit(images=1, deadline=deadline, priority=priority) as ticket:
        return (await scheduler.submit(ticket, image_of(value))).logits


async def queued(scheduler: Scheduler, values: list[int]) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(ask(scheduler, v)) for v in values]
    await asyncio.sleep(0)  # each task runs up to its wait for an answer
    return tasks


async def entered(engine: FakeEngine) -> None:
    """Until the engine is inside one more run."""
    await asyncio.to_thread(engine.entered.acquire)


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))
