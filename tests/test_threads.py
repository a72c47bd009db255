"""The threads that work is handed to, and how busy they were."""

import asyncio
import math
import threading

import pytest
from fakes import Clock

from serving.saturation import MEMORY_SECONDS, Utilisation
from serving.threads import Threads


def test_utilisation_goes_to_what_is_busy_now():
    clock = Clock()
    used = Utilisation(4, clock)
    assert used.share() == 0
    used.add(2)
    assert used.share() == 0, "no time has passed"
    clock.now += MEMORY_SECONDS
    assert used.share() == pytest.approx(0.5 * (1 - math.exp(-1)))
    clock.now += 100 * MEMORY_SECONDS
    assert used.share() == pytest.approx(0.5)
    used.add(-2)
    clock.now += MEMORY_SECONDS
    assert used.share() == pytest.approx(0.5 * math.exp(-1))


def test_utilisation_is_never_above_1():
    clock = Clock()
    used = Utilisation(2, clock)
    used.add(5)
    clock.now += 100 * MEMORY_SECONDS
    assert used.share() == pytest.approx(1)


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


def test_results_and_errors_come_back_and_each_end_is_told():
    ended: list[str] = []

    async def main() -> None:
        threads = Threads(2, "worker")
        assert await threads.run(divmod, 7, 2, ended=lambda: ended.append("seven")) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            await threads.run(divmod, 7, 0, ended=lambda: ended.append("none"))
        assert await threads.run(divmod, 9, 2, ended=lambda: ended.append("nine")) == (4, 1)
        threads.close()

    asyncio.run(main())
    assert ended == ["seven", "none", "nine"]


def test_a_cancelled_caller_does_not_hide_the_end_of_the_work():
    async def main() -> None:
        threads, go, ended = Threads(1, "worker"), threading.Event(), asyncio.Event()
        caller = asyncio.create_task(threads.run(go.wait, ended=ended.set))
        await asyncio.sleep(0)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        assert not ended.is_set(), "the thread is still at it"
        go.set()
        await asyncio.wait_for(ended.wait(), 60)
        assert await threads.run(int, "3", ended=lambda: None) == 3
        threads.close()

    asyncio.run(main())


def test_close_ends_the_threads_after_what_they_do():
    async def main() -> None:
        threads, go = Threads(3, "closing"), threading.Event()
        working = asyncio.create_task(threads.run(go.wait, ended=lambda: None))
        await asyncio.sleep(0)
        running = alive("closing")
        assert len(running) == 3
        threads.close()
        go.set()
        assert await working
        for thread in running:
            thread.join(60)
        assert not alive("closing")

    asyncio.run(main())
