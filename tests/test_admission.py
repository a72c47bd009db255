"""Who is let in: what there is room for, and what can be in time."""

import asyncio

import pytest
from fakes import Clock, FakeEngine
from schedulers import LATER, ask, entered, instant, run, scheduler_of, scheduling, timed

from packshot.errors import InvalidInput, Overloaded
from serving.admission import Priority
from serving.engines import Profile
from serving.latency import LatencyModel


def test_no_more_images_are_taken_in_than_allowed():
    async def test():
        async with scheduling(FakeEngine(), max_queued_images=3) as scheduler:
            with scheduler.admit(deadline=LATER, images=2):
                with pytest.raises(Overloaded, match="room for 1 more images"):
                    scheduler.admit(deadline=LATER, images=2).__enter__()
                with scheduler.admit(deadline=LATER, images=1):
                    pass
            with scheduler.admit(deadline=LATER, images=3):
                pass

    run(test)


def test_what_no_queue_could_hold_is_refused_for_good():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        scheduler = scheduler_of(engine, instant(1), max_queued_bytes=1000)
        never = scheduler.admit(images=1, deadline=LATER, size=1001)
        with pytest.raises(InvalidInput, match="1 images of 1001 bytes; at most"), never:
            pass
        engine.gate.set()
        await scheduler.close()

    run(test)


def test_room_is_waited_for_until_there_is_something_else_to_be_told():
    async def test():
        scheduler = scheduler_of(FakeEngine(), instant(1), max_queued_bytes=1000)

        def room(size: int) -> "asyncio.Task[None]":
            return asyncio.create_task(scheduler.room(images=1, size=size))

        with scheduler.admit(images=1, deadline=LATER, size=600):
            await room(400)
            await room(1001)  # to be told that it never has
            waiting = [room(401), room(1000)]
            await asyncio.sleep(0)
            assert not any(one.done() for one in waiting)
        await asyncio.gather(*waiting)
        with scheduler.admit(images=1, deadline=LATER, size=1000):
            waiting = [room(1), room(2)]
            await asyncio.sleep(0)
            closing = asyncio.create_task(scheduler.close())
            await asyncio.gather(*waiting)  # to be told that it is closed
        await closing

    run(test)


def test_a_request_that_cannot_be_in_time_is_refused_at_once():
    async def test():
        engine, clock = FakeEngine(), Clock()
        engine.gate.clear()
        scheduler = timed(engine, {1: 0.1, 2: 0.15}, clock)
        assert scheduler.forecast.seconds(5, (0, clock.now)) == pytest.approx(0.15 + 0.15 + 0.1)
        first = asyncio.create_task(ask(scheduler, 1, clock.now + 1))
        await entered(engine)
        clock.now += 0.04
        # 60 ms of the running batch are left, and 100 ms for its own.
        with pytest.raises(Overloaded, match="would take 160 ms and has 150 ms") as caught:
            await ask(scheduler, 2, clock.now + 0.15)
        assert caught.value.retry_after_seconds == pytest.approx(0.01)
        with pytest.raises(Overloaded, match="would take 160 ms and has 0 ms"):
            await ask(scheduler, 1, clock.now - 0.0001)
        second = asyncio.create_task(ask(scheduler, 2, clock.now + 0.17))
        await asyncio.sleep(0)
        # A later deadline goes behind the second request, an earlier one before it.
        assert scheduler.forecast.seconds(1, (0, clock.now + 9)) == pytest.approx(0.06 + 0.15)
        assert scheduler.forecast.seconds(1, (0, clock.now + 0.1)) == pytest.approx(0.06 + 0.1)
        engine.gate.set()
        await asyncio.gather(first, second)
        await scheduler.close()

    run(test)


def test_a_request_that_is_too_large_for_its_time_is_refused_though_nothing_else_is_there():
    """One that may be in time if runs are as quick as ever is tried: estimates may be too high."""

    async def test():
        clock, engine = Clock(), FakeEngine(lanes=2)
        latency = LatencyModel(Profile(lanes={1: 0.1, 2: 0.16}, alone={1: 0.06}))
        latency.observe(1, 0.3)
        scheduler = scheduler_of(engine, latency, clock=clock)
        for images, at_best in ((1, 0.06), (2, 0.08), (3, 0.12), (32, 1.28)):
            too_soon = scheduler.admit(images=images, deadline=clock.now + at_best - 0.001)
            with pytest.raises(Overloaded), too_soon:
                pass
            with scheduler.admit(images=images, deadline=clock.now + at_best + 0.001):
                pass
        await scheduler.close()

    run(test)


def test_bulk_is_shed_when_interactive_needs_its_room():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        async with scheduling(engine, max_batch=1, max_queued_images=3) as scheduler:
            first = asyncio.create_task(ask(scheduler, 0))
            await entered(engine)
            bulk = [
                asyncio.create_task(ask(scheduler, v, LATER + v, Priority.BULK)) for v in (1, 2)
            ]
            await asyncio.sleep(0)
            with pytest.raises(Overloaded, match="room for 0 more"):
                await ask(scheduler, 3, LATER, Priority.BULK)
            interactive = asyncio.create_task(ask(scheduler, 4))
            with pytest.raises(Overloaded, match="made room for interactive"):
                await bulk[1]
            assert scheduler.images == 3
            engine.gate.set()
            assert [(await task)[0] for task in (first, bulk[0], interactive)] == [0, 1, 4]
        assert len(engine.batches) == 3, "what was shed never reached the engine"

    run(test)


def test_predictions_learn_from_what_answers_take():
    async def test():
        engine, clock = FakeEngine(), Clock()
        scheduler = timed(engine, {1: 0.1}, clock)
        for _ in range(200):
            with scheduler.admit(images=1, deadline=clock.now + 9) as ticket:
                clock.now += 0.2
                ticket.answered = True
        # Behind another one: two runs of 100 ms, and twice that by experience.
        with (
            scheduler.admit(images=1, deadline=clock.now + 0.3),
            pytest.raises(Overloaded, match=r"would take (399|400) ms"),
        ):
            await ask(scheduler, 1, clock.now + 0.3)
        await scheduler.close()

    run(test)


def test_missed_deadlines_teach_and_lost_callers_do_not():
    async def test():
        clock = Clock()
        scheduler = timed(FakeEngine(), {1: 0.1}, clock)

        def prediction() -> float:
            with (
                scheduler.admit(images=1, deadline=clock.now + 99),
                pytest.raises(Overloaded) as caught,
            ):
                scheduler.admit(images=1, deadline=clock.now).__enter__()
            return caught.value.retry_after_seconds

        before = prediction()
        with scheduler.admit(images=1, deadline=clock.now + 9):
            clock.now += 1
        assert prediction() == pytest.approx(before)
        with scheduler.admit(images=1, deadline=clock.now + 1):
            clock.now += 1
        assert prediction() > before
        before = prediction()
        with scheduler.admit(images=1, deadline=clock.now + 9) as given_up:
            given_up.late = True
        assert prediction() > before
        await scheduler.close()

    run(test)


def test_estimates_that_are_too_high_are_found_out():
    async def test():
        clock = Clock()
        scheduler = timed(FakeEngine(), {1: 0.1}, clock)
        for _ in range(30):
            with scheduler.admit(images=1, deadline=clock.now + 1):
                clock.now += 5
        with pytest.raises(Overloaded):
            await ask(scheduler, 7, clock.now + 0.05)
        assert (await ask(scheduler, 7, clock.now + 0.2))[0] == 7
        await scheduler.close()

    run(test)
