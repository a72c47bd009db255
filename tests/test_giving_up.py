"""Callers that go away, deadlines that pass: what is given up, and that the others are answered."""

import asyncio
import threading
import time

import numpy as np
import pytest
from fakes import Clock, FakeEngine, image_of
from schedulers import ask, entered, instant, queued, run, scheduling, timed

from packshot.errors import DeadlineExceeded, ServiceFailed
from serving.admission import Priority
from serving.engines import Answer
from serving.lanes import Picture
from serving.metrics import Metrics
from serving.pipeline import all_of
from serving.scheduler import Scheduler


def test_cancelling_one_of_three_leaves_the_others_their_answers():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        async with scheduling(engine) as scheduler:
            first = await queued(scheduler, [9])
            await entered(engine)
            in_queue = await queued(scheduler, [1, 2, 3])
            in_queue[1].cancel()
            engine.gate.set()
            await asyncio.gather(*first, in_queue[0], in_queue[2])
            assert (in_queue[0].result()[0], in_queue[2].result()[0]) == (1, 3)
            assert in_queue[1].cancelled()
        assert engine.batches == [1, 2], "the cancelled image never reached the engine"

    run(test)


def test_cancelling_inside_a_running_batch_leaves_the_others_their_answers():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        async with scheduling(engine) as scheduler:
            tasks = await queued(scheduler, [1, 2, 3])
            await entered(engine)
            tasks[0].cancel()
            engine.gate.set()
            assert [(await task)[0] for task in tasks[1:]] == [2, 3]

    run(test)


def test_expired_images_never_reach_the_engine():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        async with scheduling(engine) as scheduler:
            tasks = await queued(scheduler, [0])
            await entered(engine)
            deadline = time.monotonic() + 0.01
            late = asyncio.create_task(ask(scheduler, 1, deadline))
            await asyncio.sleep(0)
            while time.monotonic() < deadline:
                pass
            engine.gate.set()
            with pytest.raises(DeadlineExceeded):
                await late
            await asyncio.gather(*tasks)
        assert engine.batches == [1]

    run(test)


@pytest.mark.parametrize(
    ("how", "whose", "run_sizes"),
    [
        ("cancelled", 0, [1]),  # images in the engine's runs
        ("cancelled", 1, [1]),
        ("expired", 0, [1]),
        ("expired", 1, []),  # the first is the more urgent, and late as well
    ],
)
def test_what_is_given_up_in_its_lane_never_reaches_the_engine(how, whose, run_sizes):
    """Two images in a batch: something happens while the first is decoded."""

    async def test():
        clock, engine, metrics = Clock(), FakeEngine(), Metrics()
        scheduler = Scheduler(
            engine, instant(2), max_queued_images=9, metrics=metrics.of("colours"), clock=clock
        )
        begun, go_on, second_decoded = threading.Event(), threading.Event(), threading.Event()

        def first() -> np.ndarray:
            begun.set()
            assert go_on.wait(30)
            return image_of(1)

        def second() -> np.ndarray:
            second_decoded.set()
            return image_of(2)

        async def ask_for(picture: Picture, deadline: float) -> Answer:
            with scheduler.admit(images=1, deadline=deadline, encoded=[1]) as ticket:
                return await scheduler.submit(ticket, picture)

        asked = [
            asyncio.create_task(ask_for(picture, clock.now + seconds))
            for picture, seconds in ((first, 5), (second, 9 if whose == 0 else 5.5))
        ]
        await asyncio.to_thread(begun.wait)
        if how == "cancelled":
            asked[whose].cancel()
            await asyncio.sleep(0)
        else:
            clock.now += 6
        go_on.set()
        results = await asyncio.gather(*asked, return_exceptions=True)
        error = asyncio.CancelledError if how == "cancelled" else DeadlineExceeded
        assert type(results[whose]) is error
        await scheduler.close()
        assert engine.batches == run_sizes
        assert second_decoded.is_set() == (whose == 0)
        dropped = {"model": "colours", "reason": how}
        counted = metrics.registry.get_sample_value("packshot_images_dropped_total", dropped)
        assert counted == 2 - len(run_sizes)

    run(test)


@pytest.mark.parametrize("other", [None, Priority.INTERACTIVE, Priority.BULK])
def test_what_is_late_by_the_estimates_gives_way_to_what_is_no_less_urgent(other):
    async def test():
        engine, clock = FakeEngine(), Clock()
        scheduler = timed(engine, {1: 0.1}, clock)
        await ask(scheduler, 0, clock.now + 9)  # at once: the fastest run takes no time now
        engine.gate.clear()
        wanted = [asyncio.create_task(ask(scheduler, 1, clock.now + 9))]
        await entered(engine)
        await entered(engine)
        urgent = asyncio.create_task(ask(scheduler, 2, clock.now + 0.5))
        if other is not None:
            wanted.append(asyncio.create_task(ask(scheduler, 3, clock.now + 9, other)))
        await asyncio.sleep(0)
        clock.now += 0.45
        engine.gate.set()
        await asyncio.gather(*wanted)
        if other is Priority.INTERACTIVE:
            with pytest.raises(DeadlineExceeded):
                await urgent
        else:
            assert (await urgent)[0] == 2
        await scheduler.close()

    run(test)


def test_what_would_be_late_even_if_it_ran_at_once_is_dropped_and_counts_as_late():
    async def test():
        engine, clock = FakeEngine(), Clock()
        engine.gate.clear()
        scheduler = timed(engine, {1: 0.1}, clock)
        first = asyncio.create_task(ask(scheduler, 1, clock.now + 9))
        await entered(engine)
        with scheduler.admit(images=1, deadline=clock.now + 0.5) as ticket:
            waiting = asyncio.create_task(scheduler.submit(ticket, image_of(2)))
            await asyncio.sleep(0)
            clock.now += 0.45  # its deadline has not come, but less is left than a run takes
            engine.gate.set()
            with pytest.raises(DeadlineExceeded):
                await waiting
            assert ticket.late
        await first
        await scheduler.close()
        assert engine.batches == [1]

    run(test)


def test_the_first_error_ends_the_rest_of_a_request():
    async def test():
        never = asyncio.Event()
        ended = []

        async def wait() -> None:
            try:
                await never.wait()
            finally:
                ended.append(True)

        async def fail() -> None:
            raise ServiceFailed("at once")

        with pytest.raises(ServiceFailed):
            await all_of([wait(), fail(), wait()])
        assert ended == [True, True]

    run(test)
