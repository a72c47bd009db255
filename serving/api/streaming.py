"""A stream of images in, a stream of answers out, with a bounded number of images between."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import Generic, TypeVar

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Turn:
    """One image at a time: it holds the turn from before it is read until a queue lets it in.

    What is read beyond it would be memory that no limit counts.
    """

    def __init__(self, free: asyncio.Semaphore) -> None:
        self._free = free
        self._held = True

    async def take(self) -> None:
        """Again: what was let in gave way to others."""
        if not self._held:
            await self._free.acquire()
            self._held = True

    def leave(self) -> None:
        if self._held:
            self._held = False
            self._free.release()


async def in_turns(requests: AsyncIterator[Request]) -> AsyncGenerator[tuple[Request, Turn], None]:
    """Reads the next once the turn of the one before is over; each is the receiver's to leave."""
    free = asyncio.Semaphore(0)
    turn = Turn(free)
    try:
        async for request in requests:
            yield request, turn
            await free.acquire()
            turn = Turn(free)
    finally:
        turn.leave()  # an earlier one may want it again


class InOrder(Generic[Request, Reply]):
    """For a window's `answer`: its replies leave in the order in which requests came."""

    def __init__(self, answer: Callable[[Request], Awaitable[Reply]]) -> None:
        self._answer = answer
        self._last_left = asyncio.Event()
        self._last_left.set()

    async def __call__(self, request: Request) -> Reply:
        before, left = self._last_left, asyncio.Event()
        self._last_left = left
        answering = self._answer(request)
        del request  # what waits for its turn is the reply
        try:
            reply = await answering
            await before.wait()
            return reply
        finally:
            left.set()  # the next goes on only after this one's caller has it


class Window(Generic[Request, Reply]):
    """Answers requests as they finish, at most `size` between being read and being written.

    Nothing is read while that many are unanswered, or answered and not taken by the client: gRPC's
    flow control then holds back the client. Reading ends early when `ending` is set.
    """

    def __init__(
        self,
        answer: Callable[[Request], Awaitable[Reply]],
        *,
        size: int,
        ending: asyncio.Event,
    ) -> None:
        self._answer = answer
        self._ending = ending
        self._room = asyncio.Semaphore(size)
        self._replies: asyncio.Queue[Reply | None] = asyncio.Queue()  # None: that was all
        self.ended_early = False

    async def run(self, requests: AsyncIterator[Request]) -> AsyncGenerator[Reply, None]:
        reading = asyncio.create_task(self._read(requests))
        try:
            while (reply := await self._replies.get()) is not None:
                yield reply
                self._room.release()
            await reading  # raises what reading or answering raised
        finally:
            reading.cancel()

    async def _read(self, requests: AsyncIterator[Request]) -> None:
        ending = asyncio.create_task(self._ending.wait())
        try:
            async with asyncio.TaskGroup() as group:
                while (request := await self._next(requests, ending)) is not None:
                    group.create_task(self._one(request))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        finally:
            ending.cancel()
            self._replies.put_nowait(None)

    async def _one(self, request: Request) -> None:
        answering = self._answer(request)
        del request  # it may be large, and is the answer's to let go
        self._replies.put_nowait(await answering)

    async def _next(
        self, requests: AsyncIterator[Request], ending: "asyncio.Task[bool]"
    ) -> Request | None:
        """The next request once there is room for it; None when there is none to come."""
        coming = asyncio.create_task(self._take(requests))
        try:
            await asyncio.wait({coming, ending}, return_when=asyncio.FIRST_COMPLETED)
            if coming.done():
                return coming.result()
            self.ended_early = True
            return None
        finally:
            coming.cancel()

    async def _take(self, requests: AsyncIterator[Request]) -> Request | None:
        await self._room.acquire()
        return await anext(requests, None)
