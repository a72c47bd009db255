"""One at a time is woken, in turn; nobody twice, and nothing is remembered."""

import asyncio

from schedulers import run

from serving.bell import Bell


def test_those_that_came_first_are_woken_first():
    async def test():
        bell, woken = Bell(), []

        async def wait(number: int) -> None:
            await bell.wait()
            woken.append(number)

        bell.ring_for_one()  # nobody waits
        waiting = [asyncio.create_task(wait(number)) for number in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        bell.ring_for_one()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert woken == [1]
        bell.ring_for_all()
        await asyncio.gather(*waiting[1:])
        assert woken == [1, 2, 3, 4]

    run(test)
