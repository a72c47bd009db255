"""Engines that lose rows, fail or hang: whose error it is, who takes over, and what is told."""

import asyncio

import pytest
from fakes import Clock, FakeEngine
from schedulers import ask, entered, instant, queued, run, scheduler_of, scheduling, timed
from tiny import tiny_bundle

from packshot.bundle import Bundle, open_bundle
from packshot.errors import ServiceFailed, Unavailable
from serving.engines import Profile
from serving.engines.open import Opened
from serving.metrics import Metrics
from serving.model import OPENING_SECONDS, Model
from serving.scheduler import Scheduler


def test_an_engine_that_loses_a_row_fails_its_batch_and_the_lane_goes_on():
    async def test():
        engine = FakeEngine()
        engine.lose_a_row_next = True
        async with scheduling(engine) as scheduler:
            for task in await queued(scheduler, [1, 2]):
                with pytest.raises(ServiceFailed):
                    await task
            (fine,) = await queued(scheduler, [3])
            assert (await fine)[0] == 3

    run(test)


def test_a_failing_engine_fails_its_batch_and_nothing_else():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        engine.failures_left = 1
        async with scheduling(engine) as scheduler:
            doomed = await queued(scheduler, [1, 2])
            await entered(engine)
            fine = await queued(scheduler, [3])
            engine.gate.set()
            for task in doomed:
                with pytest.raises(ServiceFailed):
                    await task
            assert (await fine[0])[0] == 3

    run(test)


def test_after_three_failures_in_a_row_another_engine_answers_what_waits():
    async def test():
        failing, failed = FakeEngine(name="first"), asyncio.Event()
        failing.failures_left = 99
        async with scheduling(failing, max_batch=1, on_failing=failed.set) as scheduler:
            tasks = await queued(scheduler, [1, 2, 3, 4])
            await failed.wait()
            with pytest.raises(Unavailable, match="first failed and is being replaced"):
                await ask(scheduler, 5)
            successor = FakeEngine(name="second")
            scheduler.take_over(successor, instant(4))
            for task in tasks[:3]:
                with pytest.raises(ServiceFailed):
                    await task
            assert (await tasks[3])[0] == 4
            assert (await ask(scheduler, 6))[0] == 6
            assert (failing.batches, successor.batches) == ([1, 1, 1], [1, 1])
        assert failing.closed
        assert successor.closed

    run(test)


def test_an_engine_without_a_successor_goes_on():
    async def test():
        engine, failed = FakeEngine(), asyncio.Event()
        engine.failures_left = 4
        async with scheduling(engine, max_batch=1, on_failing=failed.set) as scheduler:
            tasks = await queued(scheduler, [1, 2, 3, 4, 5])
            await failed.wait()
            scheduler.carry_on()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [type(r) for r in results[:4]] == [ServiceFailed] * 4
            assert results[4][0] == 5
            assert scheduler.lanes.failures_in_a_row == 0

    run(test)


def test_failures_that_are_not_in_a_row_do_not_count():
    async def test():
        engine, failed = FakeEngine(), asyncio.Event()
        async with scheduling(engine, max_batch=1, on_failing=failed.set) as scheduler:
            for _ in range(4):
                engine.failures_left = 2
                await asyncio.gather(*await queued(scheduler, [1, 2, 3]), return_exceptions=True)
        assert not failed.is_set()

    run(test)


def model_of(scheduler: Scheduler, bundle: Bundle) -> Model:
    """What a server has once the scheduler's engine was opened from this bundle."""
    opened = Opened(
        engine=scheduler.engine,
        file=bundle.manifest.engines["fp32"],
        golden_difference=0.0,
        profile=Profile(lanes={1: 0.0}),
        refusals=(),
    )
    metrics = Metrics().of(bundle.manifest.model)
    return Model(bundle=bundle, opened=opened, scheduler=scheduler, metrics=metrics)


def test_failures_of_other_lanes_are_no_trouble_while_a_successor_is_sought(tmp_path):
    async def test():
        engine, sought = FakeEngine(lanes=4), []
        engine.gate.clear()
        engine.failures_left = 99
        scheduler = scheduler_of(engine, instant(1), on_failing=lambda: sought.append(1))
        asked = await queued(scheduler, [1, 2, 3, 4])
        for _ in range(4):
            await entered(engine)
        engine.gate.set()
        await asyncio.gather(*asked, return_exceptions=True)
        model = model_of(scheduler, open_bundle(tiny_bundle(tmp_path)))
        assert (sought, scheduler.lanes.failures_in_a_row) == ([1], 4)
        assert model.trouble(30) is None
        scheduler.carry_on()
        assert model.trouble(30) == "engine fake of colours fails and there is no other"
        await scheduler.close()

    run(test)


def test_a_successor_that_hangs_while_it_is_opened_is_trouble_until_it_is_there(tmp_path):
    async def test():
        clock = Clock()
        scheduler = scheduler_of(FakeEngine(), instant(1), clock=clock)
        model = model_of(scheduler, open_bundle(tiny_bundle(tmp_path)))
        for end in (lambda: scheduler.take_over(FakeEngine(), instant(1)), scheduler.carry_on):
            assert model.trouble(30) is None
            scheduler.engine.failures_left = 3
            await asyncio.gather(*await queued(scheduler, [1, 2, 3]), return_exceptions=True)
            assert model.trouble(30) is None
            clock.now += OPENING_SECONDS
            assert model.trouble(30) is None
            assert model.why_not_ready(30) == "engine fake of colours is being replaced"
            clock.now += 1
            hangs = "engine fake of colours failed, and opening another hangs: for 301 s"
            assert model.trouble(30) == model.why_not_ready(30) == hangs
            assert model.trouble(OPENING_SECONDS + 1) is None, "runs may take longer"
            end()
            assert model.trouble(30) is None
        await scheduler.close()

    run(test)


def test_the_length_of_the_longest_run_is_known_while_it_lasts():
    async def test():
        engine, clock = FakeEngine(), Clock()
        engine.gate.clear()
        scheduler = timed(engine, {1: 0.1}, clock)
        assert scheduler.lanes.longest_run() == 0
        task = asyncio.create_task(ask(scheduler, 1, clock.now + 100))
        await entered(engine)
        clock.now += 42
        assert scheduler.lanes.longest_run() == 42
        engine.gate.set()
        await task
        assert scheduler.lanes.longest_run() == 0
        await scheduler.close()

    run(test)
