"""Batching, fairness, and that no waiter is ever forgotten."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from fakes import Clock, FakeEngine, image_of

from packshot.errors import (
    DeadlineExceeded,
    InvalidInput,
    Overloaded,
    ServiceFailed,
    Unavailable,
)
from serving.admission import Priority
from serving.engines import Answer, Images, Profile
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.model import Model
from serving.pipeline import all_of
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


def run(test: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(test(), 60))


async def entered(engine: FakeEngine) -> None:
    """Until the engine is inside one more run."""
    await asyncio.to_thread(engine.entered.acquire)


async def queued(scheduler: Scheduler, values: list[int]) -> list[asyncio.Task]:
    tasks = [asyncio.create_task(ask(scheduler, v)) for v in values]
    await asyncio.sleep(0)  # each task runs up to its wait for an answer
    return tasks


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


def test_a_batch_keeps_the_engines_rows():
    async def test():
        engine = FakeEngine()
        async with scheduling(engine) as scheduler:
            (task,) = await queued(scheduler, [7])
            answer = await task
        assert answer.dtype == np.float32
        assert answer.tolist() == [7, 7, 7]

    run(test)


def timed(engine: FakeEngine, profile: dict[int, float], clock: Clock) -> Scheduler:
    """A scheduler that reads the test's clock; `profile`: seconds of a run by batch size."""
    return scheduler_of(engine, LatencyModel(Profile(lanes=profile)), clock=clock)


def test_a_request_that_cannot_be_in_time_is_refused_at_once():
    async def test():
        engine, clock = FakeEngine(), Clock()
        engine.gate.clear()
        scheduler = timed(engine, {1: 0.1, 2: 0.15}, clock)
        assert scheduler.predict_seconds(5, (0, clock.now)) == pytest.approx(0.15 + 0.15 + 0.1)
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
        assert scheduler.predict_seconds(1, (0, clock.now + 9)) == pytest.approx(0.06 + 0.15)
        assert scheduler.predict_seconds(1, (0, clock.now + 0.1)) == pytest.approx(0.06 + 0.1)
        engine.gate.set()
        await asyncio.gather(first, second)
        await scheduler.close()

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
            with scheduler.admit(images=1, encoded=1, deadline=deadline) as ticket:
                await scheduler.submit(ticket, photo)

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
        assert scheduler.predict_seconds(1, (0, clock.now)) == pytest.approx(0.1)
        with scheduler.admit(images=1, deadline=clock.now + 9):
            assert scheduler.predict_seconds(1, (0, clock.now + 9)) == pytest.approx(0.2)
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


def test_failures_of_other_lanes_are_no_trouble_while_a_successor_is_sought():
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
        model = Named(bundle=None, opened=None, scheduler=scheduler, metrics=None)
        assert (sought, scheduler.lanes.failures_in_a_row) == ([1], 4)
        assert model.trouble(30) is None
        scheduler.carry_on()
        assert model.trouble(30) == "engine fake of colours fails and there is no other"
        await scheduler.close()

    run(test)


class Named(Model):
    name = "colours"


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
