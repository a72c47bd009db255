"""Models on the same cores: whose turn it is, and whom one that hangs, fails or ends holds up."""

import asyncio
import math
from asyncio import Future

import pytest
from fakes import Clock, FakeEngine, image_of
from schedulers import (
    LATER,
    ask,
    closed,
    entered,
    instant,
    queued,
    run,
    scheduler_of,
    sharing,
)  # fmt: skip

from packshot.errors import DeadlineExceeded, ServiceFailed
from serving.admission import Priority, Ticket
from serving.cores import OVERDUE_SECONDS, Cores
from serving.engines import Profile
from serving.latency import LatencyModel
from serving.scheduler import DRAIN_SECONDS, FAILURES_TO_REPLACE
from serving.waiting import Item


def test_bulk_of_one_model_gives_way_to_what_is_interactive_at_another():
    async def test():
        clock, one, other = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        first, second = schedulers = sharing(Cores(1, clock), clock, one, other)
        one.gate.clear()
        running = asyncio.create_task(ask(first, 1, LATER))
        await entered(one)
        bulk = asyncio.create_task(ask(first, 2, LATER, Priority.BULK))
        await asyncio.sleep(0)
        urgent = asyncio.create_task(ask(second, 3, LATER))
        await asyncio.sleep(0)
        other.gate.clear()
        one.gate.set()
        await entered(other)
        assert (len(one.batches), bulk.done()) == (1, False)
        other.gate.set()
        await asyncio.gather(running, bulk, urgent)
        await closed(schedulers, one, other)

    run(test)


def test_no_model_takes_all_cores_for_an_image_while_another_runs():
    async def test():
        one, other = FakeEngine(lanes=2), FakeEngine(lanes=2, largest_alone=1)
        cores, profile = Cores(2), Profile(lanes={1: 0.1}, alone={1: 0.1})
        schedulers = [
            scheduler_of(engine, LatencyModel(profile), cores=cores) for engine in (one, other)
        ]
        one.gate.clear()
        running = asyncio.create_task(ask(schedulers[0], 1))
        await entered(one)
        await ask(schedulers[1], 2)
        assert other.alone == [False]
        one.gate.set()
        await running
        for _ in range(10):
            await ask(schedulers[1], 3)
        assert other.alone[-1]
        await closed(schedulers, one, other)

    run(test)


def test_what_expires_at_one_model_holds_up_no_other(monkeypatch):
    monkeypatch.setattr("serving.cores.OVERDUE_SECONDS", 3600)  # which would look again

    async def test():
        clock, one, other = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        first, second = schedulers = sharing(Cores(1, clock), clock, one, other)
        one.gate.clear()
        running = asyncio.create_task(ask(first, 1, LATER))
        await entered(one)
        urgent = asyncio.create_task(ask(second, 2, clock.now + 0.3))
        behind = asyncio.create_task(ask(first, 3, LATER))
        for _ in range(5):  # until its lane has seen that it must wait
            await asyncio.sleep(0)
        clock.now += 0.4
        one.gate.set()
        await running
        outcome = await asyncio.gather(urgent, behind, return_exceptions=True)
        assert (type(outcome[0]), other.batches) == (DeadlineExceeded, [])
        await closed(schedulers, one, other)

    run(test)


def test_a_model_whose_engine_is_being_replaced_holds_up_no_other():
    async def test():
        clock, fails, other = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        first, second = schedulers = sharing(Cores(1, clock), clock, fails, other)
        fails.failures_left = FAILURES_TO_REPLACE
        for value in range(FAILURES_TO_REPLACE - 1):
            with pytest.raises(ServiceFailed):
                await ask(first, value, LATER)
        fails.gate.clear()
        third = asyncio.create_task(ask(first, 3, LATER))
        await entered(fails)
        waits = asyncio.create_task(ask(first, 4, clock.now + 40))
        await asyncio.sleep(0)
        fails.gate.set()
        assert (await ask(second, 5, clock.now + 50))[0] == 5
        assert (third.done(), waits.done(), first.being_replaced) == (True, False, True)
        first.carry_on()
        assert (await waits)[0] == 4
        await asyncio.gather(third, return_exceptions=True)
        await closed(schedulers, fails, other)

    run(test)


class Waiting:
    """A sharer with one item. `woken`: how often."""

    def __init__(self, number: int) -> None:
        ticket = Ticket(
            priority=Priority.INTERACTIVE, deadline=LATER, images=1, pending=1, size=1,
            decode_seconds=0, admitted_at=0, predicted_seconds=0,
        )  # fmt: skip
        self.item: Item | None = Item(ticket.urgency, number, ticket, image_of(1), Future(), 0, 0)
        self.woken = 0

    def next_item(self) -> Item | None:
        return self.item

    def wake(self) -> None:
        self.woken += 1


def test_two_that_are_free_at_once_are_both_used():
    async def test():
        cores, first, second = Cores(2, Clock()), Waiting(1), Waiting(2)
        cores.join(first)
        cores.join(second)
        assert not cores.has_turn(second.item)
        assert cores.has_turn(first.item)
        first.item = None
        with cores.hold(first, 0.1, width=1):
            assert second.woken == 1
            assert cores.has_turn(second.item)

    run(test)


def test_a_lone_image_waits_for_company_of_another_model():
    """More than half of the requests of late met others: it stays in its lane."""

    async def test():
        one, other = FakeEngine(lanes=2), FakeEngine(lanes=2, largest_alone=1)
        cores, profile = Cores(2), Profile(lanes={1: 0.1}, alone={1: 0.1})
        schedulers = [
            scheduler_of(engine, LatencyModel(profile), cores=cores) for engine in (one, other)
        ]
        with schedulers[0].admit(images=1, deadline=LATER):
            for _ in range(10):
                with schedulers[1].admit(images=1, deadline=LATER):
                    pass
        await ask(schedulers[1], 1)
        assert other.alone == [False]
        await closed(schedulers, one, other)

    run(test)


@pytest.mark.parametrize("one_by_one", [True, False])
def test_a_batch_holds_up_what_is_more_urgent_elsewhere_only_where_it_gains_by_it(one_by_one):
    async def test():
        clock, cores = Clock(), Cores(1)
        one, other = (FakeEngine(lanes=1, one_by_one=one_by_one) for _ in range(2))
        runs = LatencyModel(Profile(lanes={1: 0.1, 2: 0.1, 3: 0.1}))
        first, second = schedulers = [
            scheduler_of(engine, runs, clock=clock, cores=cores) for engine in (one, other)
        ]
        one.gate.clear()
        asked = [asyncio.create_task(ask(first, 0, LATER))]
        await entered(one)
        for scheduler, number, priority in (
            (first, 1, Priority.INTERACTIVE),
            (second, 2, Priority.INTERACTIVE),
            (first, 3, Priority.INTERACTIVE),
            (first, 4, Priority.BULK),
        ):
            deadline = LATER + number
            asked.append(asyncio.create_task(ask(scheduler, number, deadline, priority)))
        await asyncio.sleep(0)
        other.gate.clear()
        one.gate.set()
        await entered(other)
        assert one.batches == ([1, 1] if one_by_one else [1, 2]), "bulk never goes before"
        other.gate.set()
        await asyncio.gather(*asked)
        await closed(schedulers, one, other)

    run(test)


def test_one_takes_its_share_of_the_cores_that_are_free_not_of_its_lanes():
    async def test():
        cores, one, other = Cores(2), FakeEngine(lanes=2), FakeEngine(lanes=2)
        runs = instant(4)
        first, second = schedulers = [
            scheduler_of(engine, runs, cores=cores) for engine in (one, other)
        ]
        one.gate.clear()
        running = asyncio.create_task(ask(first, 1))
        await entered(one)
        assert cores.free == 1
        await asyncio.gather(*await queued(second, [2, 3, 4, 5]))
        assert other.batches == [4]
        one.gate.set()
        await running
        await closed(schedulers, one, other)

    run(test)


def test_an_image_on_all_cores_counts_as_all_of_them_in_use():
    async def test():
        clock = Clock()
        cores = Cores(4, clock)
        with cores.hold(Waiting(1), 0.1, width=4):
            clock.now += 1000
            assert cores.utilisation.share() == pytest.approx(1)

    run(test)


def test_a_version_that_drains_is_not_held_up_for_ever():
    """Its bulk would wait for as long as the new one has interactive requests."""

    async def test():
        clock, old, new = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        before, after = sharing(Cores(1, clock), clock, old, new)
        new.gate.clear()
        running = asyncio.create_task(ask(after, 1, clock.now + 1))
        await entered(new)
        bulk = asyncio.create_task(ask(before, 2, math.inf, Priority.BULK))
        await asyncio.sleep(0)
        closing = asyncio.create_task(before.close())
        sooner = asyncio.create_task(ask(after, 3, clock.now + DRAIN_SECONDS - 1))
        await asyncio.sleep(0)
        later = asyncio.create_task(ask(after, 4, clock.now + DRAIN_SECONDS + 1))
        await asyncio.sleep(0)
        new.gate.set()
        order = []
        for number, task in enumerate((running, sooner, bulk, later)):
            task.add_done_callback(lambda _, number=number: order.append(number))
        await asyncio.gather(running, bulk, closing, sooner, later)
        assert order == [0, 1, 2, 3]
        await after.close()

    run(test)


def test_a_version_whose_last_request_leaves_holds_up_no_other(monkeypatch):
    monkeypatch.setattr("serving.cores.OVERDUE_SECONDS", 3600)  # which would look again

    async def test():
        clock, one, old = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        first, second = sharing(Cores(1, clock), clock, one, old)
        one.gate.clear()
        running = asyncio.create_task(ask(first, 1, LATER))
        await entered(one)
        urgent = asyncio.create_task(ask(second, 2, clock.now + 9))
        await asyncio.sleep(0)
        behind = asyncio.create_task(ask(first, 3, LATER))
        closing = asyncio.create_task(second.close())
        for _ in range(5):
            await asyncio.sleep(0)
        urgent.cancel()
        running.add_done_callback(lambda _: None)
        one.gate.set()
        await asyncio.gather(running, behind)
        await asyncio.gather(urgent, closing, return_exceptions=True)
        await first.close()

    run(test)


def test_one_that_cannot_be_closed_leaves_the_cores_all_the_same():
    class Stubborn(FakeEngine):
        def close(self) -> None:
            raise RuntimeError("the driver is gone")

    async def test():
        clock, stubborn, other = Clock(), Stubborn(lanes=1), FakeEngine(lanes=1)
        first, second = sharing(Cores(1, clock), clock, stubborn, other)
        with pytest.raises(RuntimeError):
            await first.close()
        with first.cores.hold(first, 0.1, width=1):
            first.cores.wake_blocked()
        assert (await ask(second, 1, LATER))[0] == 1
        assert first.cores.sharers == [second]
        await second.close()

    run(test)


@pytest.mark.parametrize("told", ["by another request", "by nobody"])
def test_an_engine_that_hangs_does_not_keep_its_core_from_other_models(told):
    async def test():
        clock, hangs, other = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        first, second = schedulers = sharing(Cores(1, clock), clock, hangs, other)
        hangs.gate.clear()
        lost = asyncio.create_task(ask(first, 1, LATER))
        await entered(hangs)
        asked = [asyncio.create_task(ask(second, 2, LATER))]
        await asyncio.sleep(0)
        assert not other.batches
        clock.now += 0.2 + OVERDUE_SECONDS
        if told == "by another request":
            asked.append(asyncio.create_task(ask(second, 3, LATER)))
        assert [int(answer[0]) for answer in await asyncio.gather(*asked)] == [2, 3][: len(asked)]
        assert not lost.done()
        hangs.gate.set()
        await lost
        await closed(schedulers, hangs, other)

    run(test)


def test_a_version_that_is_swapped_out_shares_the_cores_until_it_is_closed():
    async def test():
        clock, old, new = Clock(), FakeEngine(lanes=1), FakeEngine(lanes=1)
        cores = Cores(1, clock)
        before, after = sharing(cores, clock, old, new)
        old.gate.clear()
        running = asyncio.create_task(ask(before, 1, LATER))
        await entered(old)
        closing = asyncio.create_task(before.close())
        waiting = asyncio.create_task(ask(after, 2, LATER))
        await asyncio.sleep(0)
        assert (cores.free, new.batches) == (0, [])
        old.gate.set()
        await asyncio.gather(running, closing, waiting)
        assert cores.free == 1
        await after.close()

    run(test)


def test_a_device_has_workers_of_its_own():
    async def test():
        clock, device, cpu = Clock(), FakeEngine(lanes=2), FakeEngine(lanes=1)
        device.lanes_share = True
        first, second = schedulers = sharing(Cores(1, clock), clock, device, cpu)
        device.gate.clear()
        with first.admit(images=1, deadline=LATER) as ticket:
            running = asyncio.create_task(first.submit(ticket, image_of(1)))
            await entered(device)
            assert (await ask(second, 2, LATER))[0] == 2
            device.gate.set()
            await running
        await closed(schedulers, device, cpu)

    run(test)
