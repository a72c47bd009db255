"""What of a stream is read, and when."""

import asyncio
import weakref

from serving.api.streaming import InOrder, Turn, Window, in_turns


async def numbers(read: list[int]):
    for number in range(5):
        read.append(number)
        yield number


def test_a_stream_is_read_as_its_images_are_let_in():
    async def main() -> None:
        read: list[int] = []
        turns: list[Turn] = []
        come, go = asyncio.Semaphore(0), asyncio.Event()

        async def answer(one: tuple[int, Turn]) -> int:
            number, turn = one
            turns.append(turn)
            come.release()
            await go.wait()
            return number

        window = Window(answer, size=4, ending=asyncio.Event())

        async def replies() -> list[int]:
            return [reply async for reply in window.run(in_turns(numbers(read)))]

        answering = asyncio.create_task(replies())
        for count in range(1, 4):
            await come.acquire()
            for _ in range(10):
                await asyncio.sleep(0)
            assert len(read) == count, "one waits to be let in"
            turns[-1].leave()
            turns[-1].leave()  # once more is as good as once
        await come.acquire()
        # The first is to wait again: it comes before what has not been read.
        again = asyncio.create_task(turns[0].take())
        await asyncio.sleep(0)
        turns[3].leave()
        await again
        assert len(read) == 4
        turns[0].leave()
        go.set()
        turns_left = asyncio.create_task(leave_all(turns))
        assert sorted(await answering) == [0, 1, 2, 3, 4]
        turns_left.cancel()

    async def leave_all(turns: list[Turn]) -> None:
        while True:
            for turn in turns:
                turn.leave()
            await asyncio.sleep(0)

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_turn_is_free_where_nothing_more_is_read():
    async def main() -> None:
        read: list[int] = []
        async for _, turn in in_turns(numbers(read)):
            turn.leave()
        await turn.take()

    asyncio.run(asyncio.wait_for(main(), 60))


def test_a_request_is_let_go_as_soon_as_it_is_answered():
    """The first is slow: what waits behind it for its turn is replies, not requests."""

    class Large:
        pass

    async def main() -> None:
        alive: weakref.WeakSet[Large] = weakref.WeakSet()
        come, go = asyncio.Semaphore(0), asyncio.Event()

        async def requests():
            for _ in range(5):
                request = Large()
                alive.add(request)
                yield request
                del request

        async def answer(one: tuple[Large, Turn]) -> int:
            first = len(alive) == 1
            one[1].leave()
            come.release()
            if first:
                await go.wait()
            return 7

        window = Window(InOrder(answer), size=8, ending=asyncio.Event())

        async def replies() -> list[int]:
            return [reply async for reply in window.run(in_turns(requests()))]

        answering = asyncio.create_task(replies())
        for _ in range(5):
            await come.acquire()
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(alive) <= 2, "the first, and at most the last"
        go.set()
        assert await answering == [7] * 5

    asyncio.run(asyncio.wait_for(main(), 60))
