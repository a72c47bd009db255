"""The end of a scheduler: whoever was let in is answered, and nothing holds it up for ever."""

import asyncio
import time

import pytest
from fakes import FakeEngine, image_of
from schedulers import LATER, entered, instant, queued, run, scheduler_of

from packshot.errors import ServiceFailed, Unavailable
from serving.engines import Answer, Images


def test_a_request_that_is_still_being_decoded_holds_up_the_close():
    async def test():
        engine = FakeEngine()
        scheduler = scheduler_of(engine, instant(2))
        with scheduler.admit(deadline=LATER, images=1) as ticket:
            closing = asyncio.create_task(scheduler.close())
            await asyncio.sleep(0)
            assert (await scheduler.submit(ticket, image_of(4))).logits[0] == 4
            assert not closing.done()
        await closing
        assert engine.closed
        with pytest.raises(Unavailable):
            await scheduler.submit(ticket, image_of(5))

    run(test)


def test_an_engine_that_hangs_does_not_hold_up_the_close_for_ever():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        scheduler = scheduler_of(engine, instant(1))
        running, waiting = await queued(scheduler, [1, 2])
        await entered(engine)
        await scheduler.close(hangs_seconds=0.01)
        with pytest.raises(ServiceFailed, match="hangs"):
            await running
        with pytest.raises(Unavailable):
            await waiting
        assert scheduler.left_behind
        assert not engine.closed
        engine.gate.set()
        await asyncio.to_thread(engine.closing.wait)
        assert not scheduler.left_behind

    run(test)


def test_an_engine_that_hangs_when_another_takes_over_fails_what_it_had(monkeypatch):
    monkeypatch.setattr("serving.scheduler.HANGS_SECONDS", 0.01)

    async def test():
        old, new = FakeEngine(), FakeEngine()
        old.gate.clear()
        scheduler = scheduler_of(old, instant(1))
        running, waiting = await queued(scheduler, [1, 2])
        await entered(old)
        scheduler.take_over(new, instant(1))
        assert (await waiting)[0] == 2
        with pytest.raises(ServiceFailed, match="hangs"):
            await running
        assert scheduler.left_behind
        old.gate.set()
        await asyncio.to_thread(old.closing.wait)
        await scheduler.close()

    run(test)


def test_a_long_queue_is_no_reason_to_cut_a_version_off():
    """It closes when all that was let in is answered: only a single run can take too long."""

    class Slow(FakeEngine):
        def run(self, images: Images, *, alone: bool = False) -> Answer:
            time.sleep(0.2)
            return super().run(images, alone=alone)

    async def test():
        scheduler = scheduler_of(Slow(), instant(1))
        asked = await queued(scheduler, list(range(6)))
        await scheduler.close(hangs_seconds=1.0)
        assert [float((await one)[0]) for one in asked] == list(range(6))

    run(test)


def test_closing_answers_what_is_queued_and_then_refuses():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        scheduler = scheduler_of(engine, instant(2))
        tasks = await queued(scheduler, [1, 2, 3, 4, 5])
        closing = asyncio.create_task(scheduler.close())
        await entered(engine)
        with pytest.raises(Unavailable):
            scheduler.admit(deadline=LATER, images=1).__enter__()
        assert not engine.closed
        engine.gate.set()
        await closing
        assert [task.result()[0] for task in tasks] == [1, 2, 3, 4, 5]
        assert engine.closed

    run(test)
