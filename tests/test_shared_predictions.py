"""Models on the same cores: what a request is told of the time that it will take."""

import asyncio
from contextlib import ExitStack

import pytest
from fakes import Clock, FakeEngine
from schedulers import LATER, ask, closed, entered, run, scheduler_of, seconds_a_run, sharing

from packshot.errors import Overloaded
from serving.admission import Priority
from serving.cores import OVERDUE_SECONDS, Cores
from serving.engines import Profile
from serving.latency import LatencyModel
from serving.scheduler import FAILURES_TO_REPLACE


def test_a_prediction_counts_what_runs_and_what_waits_at_other_models():
    async def test():
        clock, one, other = Clock(), FakeEngine(lanes=2), FakeEngine(lanes=2)
        first, second = schedulers = sharing(Cores(2, clock), clock, one, other)
        later = clock.now + 60
        assert second.forecast.seconds(1, (0, later)) == pytest.approx(0.1)
        one.gate.clear()
        asked = [asyncio.create_task(ask(first, value, clock.now + 50)) for value in range(6)]
        await entered(one)
        await entered(one)
        assert second.forecast.seconds(1, (0, later)) == pytest.approx((2 + 4 + 1) * 0.1 / 2)
        sooner = (0, clock.now + 9)
        assert second.forecast.seconds(1, sooner) == pytest.approx((2 + 1) * 0.1 / 2)
        with pytest.raises(Overloaded), second.admit(images=1, deadline=clock.now + 0.14):
            pass
        one.gate.set()
        await asyncio.gather(*asked)
        await closed(schedulers, one, other)

    run(test)


def test_what_waits_at_every_other_model_counts():
    async def test():
        clock, engines = Clock(), [FakeEngine(lanes=1) for _ in range(3)]
        schedulers = sharing(Cores(1, clock), clock, *engines)
        for engine in engines:
            engine.gate.clear()
        asked = [asyncio.create_task(ask(one, 1, clock.now + 9)) for one in schedulers]
        await entered(engines[0])
        for one in schedulers:
            assert one.forecast.seconds(1, (0, clock.now + 10)) == pytest.approx(0.4)
        for engine in engines:
            engine.gate.set()
        await asyncio.gather(*asked)
        await closed(schedulers, *engines)

    run(test)


def test_a_core_that_is_free_is_not_said_to_be_busy_as_others_are():
    async def test():
        clock, slow, quick = Clock(), FakeEngine(lanes=4), FakeEngine(lanes=4)
        cores = Cores(4, clock)
        first = scheduler_of(slow, seconds_a_run(2.0), clock=clock, cores=cores)
        second = scheduler_of(quick, seconds_a_run(0.01), clock=clock, cores=cores)
        slow.gate.clear()
        running = asyncio.create_task(ask(first, 1, LATER))
        await entered(slow)
        assert second.forecast.seconds(1, (0, clock.now + 1)) == pytest.approx(0.01)
        clock.now += 2.5  # longer than predicted: a run that is late has nothing left
        assert second.forecast.seconds(1, (0, clock.now + 1)) == pytest.approx(0.01)
        assert (await ask(second, 2, clock.now + 0.1))[0] == 2
        slow.gate.set()
        await running
        await closed([first, second], slow, quick)

    run(test)


@pytest.mark.parametrize(
    ("busy", "work", "seconds"),
    [
        ([], 0.0, 0.0),
        ([], 3.0, 1.0),
        ([1.0], 1.0, 0.5),
        ([1.0], 2.0, 1.0),
        ([1.0, 4.0], 3.0, 2.0),
        ([1.0, 2.0, 3.0], 0.0, 1.0),
        ([1.0, 2.0, 3.0], 3.0, 3.0),
        ([5.0, 5.0, 5.0, 5.0], 3.0, 6.0),
    ],
)
def test_work_flows_to_the_cores_that_are_free_first(busy, work, seconds):
    cores, told = Cores(3, Clock()), ExitStack()
    for one in busy:
        told.enter_context(cores.hold(None, one, width=1))
    with told:
        assert cores.seconds_until_done(work) == pytest.approx(seconds)


def test_an_estimate_that_is_too_high_is_tried_beside_others():
    """Refused for as long as others have anything in progress, it would never be corrected."""

    async def test():
        clock, one, other = Clock(), FakeEngine(lanes=2), FakeEngine(lanes=2)
        cores, latency = Cores(2, clock), seconds_a_run(0.26)
        first = scheduler_of(one, seconds_a_run(0.1), clock=clock, cores=cores)
        second = scheduler_of(other, latency, clock=clock, cores=cores)
        latency.observe(1, 0.01)
        one.gate.clear()
        running = asyncio.create_task(ask(first, 1, LATER, Priority.BULK))
        await entered(one)
        with pytest.raises(Overloaded), second.admit(images=1, deadline=clock.now + 0.005):
            pass
        assert (await ask(second, 2, clock.now + 0.2))[0] == 2
        one.gate.set()
        await running
        await closed([first, second], one, other)

    run(test)


@pytest.mark.parametrize("how", ["is replaced", "hangs", "hangs, and drains"])
def test_what_is_stuck_at_one_model_counts_for_no_other(how):
    async def test():
        clock, bad, good = Clock(), FakeEngine(lanes=2), FakeEngine(lanes=2, largest_alone=1)
        cores = Cores(2, clock)
        stuck, other = (
            scheduler_of(
                engine, LatencyModel(Profile(lanes={1: 0.1}, alone={1: 0.05})),
                clock=clock, cores=cores,
            )
            for engine in (bad, good)
        )  # fmt: skip
        bad.gate.clear()
        asked = [asyncio.create_task(ask(stuck, 1, clock.now + 4)) for _ in range(70)]
        await entered(bad)
        await entered(bad)
        closing = None
        if how == "is replaced":
            bad.failures_left = FAILURES_TO_REPLACE + 1
            bad.gate.set()
            await asyncio.gather(*asked[: FAILURES_TO_REPLACE + 1], return_exceptions=True)
        else:
            clock.now += 0.2 + OVERDUE_SECONDS
        if how == "hangs, and drains":
            closing = asyncio.create_task(stuck.close())
            await asyncio.sleep(0)
        assert (cores.free, cores.idle, cores.occupied) == (2, True, False)
        for _ in range(3):
            await ask(other, 2, clock.now + 0.06)
        assert good.alone == [True] * 3
        bad.failures_left = 0
        bad.gate.set()
        stuck.carry_on()
        await asyncio.gather(*asked, return_exceptions=True)
        await closed([other] if closing else [stuck, other], bad, good)
        if closing:
            await closing

    run(test)
