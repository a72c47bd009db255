"""What runs together: how large a batch is, and who goes first."""

import asyncio

import numpy as np
import pytest
from fakes import Clock, FakeEngine, image_of
from schedulers import LATER, ask, entered, instant, queued, run, scheduling, timed

from serving.admission import Priority
from serving.metrics import Metrics
from serving.scheduler import Scheduler


def test_everyone_gets_the_answer_to_his_own_image():
    async def test():
        async with scheduling(FakeEngine()) as scheduler:
            answers = await asyncio.gather(*await queued(scheduler, list(range(50))))
        assert [answer[0] for answer in answers] == list(range(50))

    run(test)


def test_what_waits_while_the_engine_is_busy_becomes_one_batch():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        async with scheduling(engine, max_batch=4) as scheduler:
            tasks = await queued(scheduler, [0])
            await entered(engine)
            tasks += await queued(scheduler, [1, 2, 3, 4, 5])
            engine.gate.set()
            await asyncio.gather(*tasks)
        assert engine.batches == [1, 4, 1]

    run(test)


def test_idle_lanes_share_what_waits():
    async def test():
        engine = FakeEngine(lanes=2)
        async with scheduling(engine, max_batch=8) as scheduler:
            await asyncio.gather(*await queued(scheduler, list(range(6))))
        assert sorted(engine.batches) == [3, 3]

    run(test)


def test_the_earliest_deadline_goes_first():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        finished: list[int] = []

        async def waiter(value: int, deadline: float) -> None:
            await ask(scheduler, value, deadline)
            finished.append(value)

        async with scheduling(engine, max_batch=1) as scheduler:
            tasks = await queued(scheduler, [0])
            await entered(engine)
            tasks += [asyncio.create_task(waiter(v, LATER - v)) for v in (1, 3, 2)]
            await asyncio.sleep(0)
            engine.gate.set()
            await asyncio.gather(*tasks)
        assert finished == [3, 2, 1]

    run(test)


def test_interactive_goes_before_bulk():
    async def test():
        engine = FakeEngine()
        engine.gate.clear()
        finished: list[int] = []

        async def waiter(value: int, priority: Priority, deadline: float) -> None:
            await ask(scheduler, value, deadline, priority)
            finished.append(value)

        async with scheduling(engine, max_batch=1) as scheduler:
            first = asyncio.create_task(ask(scheduler, 0))
            await entered(engine)
            bulk = asyncio.create_task(waiter(1, Priority.BULK, LATER - 9))
            interactive = asyncio.create_task(waiter(2, Priority.INTERACTIVE, LATER))
            await asyncio.sleep(0)
            engine.gate.set()
            await asyncio.gather(first, bulk, interactive)
        assert finished == [2, 1]

    run(test)


@pytest.mark.parametrize(
    ("lanes_share", "quiet_seconds", "batches"),
    [(False, 9.9, [1, 2, 1, 1, 1]), (False, 10.1, [1, 2, 3]), (True, 0, [1, 5])],
)
def test_in_a_cpus_lanes_bulk_goes_one_by_one_while_something_interactive_may_come(
    lanes_share, quiet_seconds, batches
):
    """It would wait for the run that has begun. On a device a larger one takes little longer."""

    async def test():
        clock, engine = Clock(), FakeEngine(lanes_share=lanes_share)
        engine.gate.clear()
        async with scheduling(engine, max_batch=8, clock=clock) as scheduler:
            asked = [asyncio.create_task(ask(scheduler, 0, LATER))]
            await entered(engine)
            asked += [
                asyncio.create_task(ask(scheduler, number, LATER, priority))
                for number, priority in enumerate([Priority.BULK] * 3 + [Priority.INTERACTIVE] * 2)
            ]
            await asyncio.sleep(0)
            clock.now += quiet_seconds
            engine.gate.set()
            await asyncio.gather(*asked)
        assert engine.batches == batches

    run(test)


@pytest.mark.parametrize(("device", "batches"), [(False, [1, 2, 2]), (True, [1, 4])])
def test_in_a_cpus_lanes_a_batch_is_no_larger_than_its_most_urgent_image_has_time_for(
    device, batches
):
    async def test():
        engine, clock = FakeEngine(lanes_share=device), Clock()
        engine.gate.clear()
        scheduler = timed(engine, {1: 0.1, 2: 0.15, 3: 0.2, 4: 0.25}, clock)
        tasks = [asyncio.create_task(ask(scheduler, 1, clock.now + 9))]
        await entered(engine)
        deadlines = [clock.now + 1, *[clock.now + 9] * 3]
        tasks += [asyncio.create_task(ask(scheduler, 2, deadline)) for deadline in deadlines]
        await asyncio.sleep(0)
        clock.now += 0.82  # one of the four has time for a batch of two
        engine.gate.set()
        await asyncio.gather(*tasks)
        await scheduler.close()
        assert engine.batches == batches

    run(test)


def test_the_size_of_a_batch_leaves_time_to_decode_its_images():
    async def test():
        engine, clock = FakeEngine(), Clock()
        scheduler = timed(engine, {1: 0.1, 2: 0.15}, clock)

        def photo() -> np.ndarray:
            clock.now += 0.2
            return image_of(1)

        async def ask_for_photo(deadline: float) -> None:
            with scheduler.admit(images=1, encoded=[9], deadline=deadline) as ticket:
                await scheduler.submit(ticket, photo, file_size=9)

        await ask_for_photo(clock.now + 9)  # teaches how long decoding takes
        engine.gate.clear()
        await entered(engine)
        tasks = [asyncio.create_task(ask(scheduler, 0, clock.now + 9))]
        await entered(engine)
        tasks += [asyncio.create_task(ask_for_photo(clock.now + left)) for left in (0.5, 9, 9)]
        await asyncio.sleep(0)
        engine.gate.set()
        await asyncio.gather(*tasks)
        await scheduler.close()
        # Two of them take 0.55 s and the first has 0.5: it runs by itself.
        assert engine.batches == [1, 1, 1, 2]

    run(test)


def test_a_batch_keeps_the_engines_rows():
    async def test():
        engine = FakeEngine()
        async with scheduling(engine) as scheduler:
            (task,) = await queued(scheduler, [7])
            answer = await task
        assert answer.dtype == np.float32
        assert answer.tolist() == [7, 7, 7]

    run(test)


@pytest.mark.parametrize(
    ("lanes", "asked", "expected"),
    [
        (1, [[1], [2, 3, 4]], {"empty": 2, "full": 1}),
        (2, [[1, 2]], {"empty": 1, "shared": 1}),
    ],
)
def test_why_a_batch_has_no_more_images_is_counted(lanes, asked, expected):
    async def test():
        engine, metrics = FakeEngine(lanes=lanes), Metrics()
        engine.gate.clear()
        scheduler = Scheduler(
            engine, instant(2), max_queued_images=9, metrics=metrics.of("colours")
        )
        tasks = []
        for values in asked:  # the first run while the others come
            tasks += await queued(scheduler, values)
            if values is asked[0]:
                await entered(engine)
        engine.gate.set()
        await asyncio.gather(*tasks)
        await scheduler.close()
        (family,) = (f for f in metrics.batches_closed.collect())
        found = {s.labels["reason"]: s.value for s in family.samples if s.name.endswith("_total")}
        assert {reason: count for reason, count in found.items() if count} == expected

    run(test)
