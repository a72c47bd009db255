"""Reads messages, as long as there is memory for them.

gRPC knows the size of a message when it has all of it, and has no limit for all of them together:
without this a few large requests at once are more than a container has.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from packshot.errors import Overloaded, PackshotError
from packshot.status import status_code
from serving.memory import Memory
from serving.metrics import Metrics

log = logging.getLogger("packshot.api")

Context = grpc.aio.ServicerContext[Any, Any]
Reader: TypeAlias = "asyncio.Task[Any] | None"

LOOK_SECONDS = 0.01  # gRPC reads some ten megabytes meanwhile
LARGE_BYTES = 1 << 20
RETRY_AFTER_SECONDS = 0.5


class Receiving:
    """Lives on the event loop. While memory is short nothing more is read, and reads are ended."""

    def __init__(self, memory: Memory, metrics: Metrics) -> None:
        self._memory = memory
        self._metrics = metrics
        self._enough = asyncio.Event()  # memory is not short
        self._reading: dict[Reader, Context] = {}  # in the order in which they began
        self._next_look: asyncio.TimerHandle | None = None
        self._endings: set[asyncio.Task[None]] = set()

    async def request(self, context: Context) -> Any:
        """The only message of a call.

        Raises InvalidInput for what cannot be parsed, Overloaded while memory is short, AbortError
        where the call was ended for that, CancelledError where it never came.
        """
        message = await self.read(context)
        if message is grpc.aio.EOF:  # its client went, or was told by gRPC that it is too large
            raise asyncio.CancelledError
        return message

    def messages(self, context: Context) -> AsyncIterator[Any]:
        """All of a call. While memory is short the next waits. Raises the same, but Overloaded."""
        return _Messages(self, context)

    async def room(self) -> None:
        """Until memory is not short."""
        while self._is_short():
            await self._enough.wait()

    def _is_short(self) -> bool:
        if self._next_look is None:
            self._look()
        return not self._enough.is_set()

    async def read(self, context: Context) -> Any:
        """The next message of a call, EOF if there is none. Raises as `request` does."""
        if self._is_short():
            raise self._refusal()
        reader = asyncio.current_task()
        self._reading[reader] = context
        try:
            message = await context.read()
        finally:
            self._reading.pop(reader, None)
        if isinstance(message, PackshotError):
            raise message
        return message

    def parsed(self, raw: bytes, parse: Callable[[bytes], Any]) -> Any:
        """What `parse` makes of it, or if memory is short by now, what is raised in its place.

        Several large messages may be there before there was time for a look.
        """
        if len(raw) > LARGE_BYTES:
            self._reading.pop(asyncio.current_task(), None)  # it has been read
            self._look()
            if not self._enough.is_set():
                return self._refusal()
        return parse(raw)

    def _look(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        self._next_look = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look_again)
        if not self._memory.short:
            self._enough.set()
            return
        self._enough.clear()
        # The newest half: the others may be nearly done, and were there first.
        for reader in list(self._reading)[len(self._reading) // 2 :]:
            ending = asyncio.create_task(self._end(reader))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    def _look_again(self) -> None:
        self._next_look = None
        if self._reading or not self._enough.is_set():
            self._look()

    async def _end(self, reader: Reader) -> None:
        """From beside it: a read that is cancelled leaves its bytes in gRPC for ever."""
        context = self._reading.pop(reader, None)
        if context is None:  # it was read, or ended, meanwhile
            return
        error = self._refusal()
        try:
            await context.abort(status_code(error), str(error))
        except grpc.aio.AbortError:
            pass  # as it should
        except Exception as gone:
            log.debug("a call was gone before it could be ended", exc_info=gone)

    def _refusal(self) -> Overloaded:
        self._metrics.short_of_memory.inc()
        return Overloaded(
            f"the server uses {self._memory.most_bytes} bytes of memory or more, and reads nothing "
            "meanwhile: try again later, or send less at a time",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


class _Messages:
    """No generator, which would keep the last message until the next is asked for."""

    def __init__(self, receiving: Receiving, context: Context) -> None:
        self._receiving = receiving
        self._context = context

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        await self._receiving.room()
        message = await self._receiving.read(self._context)
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
