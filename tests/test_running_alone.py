"""When an image has all cores to itself, and when it stays in one lane."""

import asyncio

import pytest
from fakes import Clock, FakeEngine, image_of
from schedulers import LATER, ask, entered, queued, run, scheduler_of, scheduling

from serving.engines import Profile
from serving.latency import LatencyModel


def test_a_lone_image_runs_on_all_cores_and_several_in_lanes():
    async def test():
        engine = FakeEngine(lanes=4, largest_alone=2)
        async with scheduling(engine) as scheduler:
            await ask(scheduler, 1)
            assert engine.alone == [True]
            engine.gate.clear()
            first = asyncio.create_task(ask(scheduler, 2))
            await entered(engine)
            await entered(engine)
            second = asyncio.create_task(ask(scheduler, 3))
            await entered(engine)
            assert engine.alone[1:] == [True, False], "another run was in progress"
            engine.gate.set()
            await asyncio.gather(first, second)
            del engine.alone[:]
            await asyncio.gather(*await queued(scheduler, [4, 5, 6]))
            assert engine.alone == [False] * 3

    run(test)


def test_where_requests_meet_a_lone_image_stays_in_its_lane_until_they_no_longer_do():
    """Split over all cores it takes more CPU, which the next to come would lack."""

    async def test():
        engine = FakeEngine(lanes=2, largest_alone=1)
        async with scheduling(engine) as scheduler:
            with scheduler.admit(images=1, deadline=LATER):
                for _ in range(10):
                    with scheduler.admit(images=1, deadline=LATER):
                        pass
            await ask(scheduler, 1)
            assert engine.alone == [False], "the queue was empty, but seldom is"
            for _ in range(10):
                await ask(scheduler, 2)
            assert engine.alone[-1]

    run(test)


def test_a_prediction_for_an_idle_moment_is_that_of_all_cores():
    async def test():
        engine, clock = FakeEngine(lanes=2, largest_alone=1), Clock()
        latency = LatencyModel(Profile(lanes={1: 0.2}, alone={1: 0.1}))
        scheduler = scheduler_of(engine, latency, clock=clock)
        assert scheduler.forecast.seconds(1, (0, clock.now)) == pytest.approx(0.1)
        with scheduler.admit(images=1, deadline=clock.now + 9):
            assert scheduler.forecast.seconds(1, (0, clock.now + 9)) == pytest.approx(0.2)
        await scheduler.close()

    run(test)


def test_on_many_cores_more_than_a_batch_does_not_run_alone():
    async def test():
        engine = FakeEngine(lanes=32, largest_alone=16)
        runs = dict.fromkeys(range(1, 9), 0.0)
        latency = LatencyModel(Profile(lanes=runs, alone=runs))
        scheduler = scheduler_of(engine, latency)
        with scheduler.admit(images=12, deadline=LATER) as ticket:
            waiting = [scheduler.submit(ticket, image_of(value)) for value in range(12)]
            answers = await asyncio.gather(*waiting)
        assert [answer.logits[0] for answer in answers] == list(range(12))
        assert not any(engine.alone)
        await scheduler.close()

    run(test)
