"""Reads messages, as long as there is memory for them.

gRPC knows the size of a message when it has all of it, and has no limit for all of them together:
without this a few large requests at once are more than a container has.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, TypeAlias

import grpc

from packshot.errors import InvalidInput, Overloaded, PackshotError, Unavailable
from packshot.status import status_code
from serving.memory import Memory
from serving.metrics import Metrics

log = logging.getLogger("packshot.api")

Context = grpc.aio.ServicerContext[Any, Any]
Reader: TypeAlias = "asyncio.Task[Any] | None"

LOOK_SECONDS = 0.01  # gRPC reads some ten megabytes meanwhile
LARGE_BYTES = 1 << 20
RETRY_AFTER_SECONDS = 0.5
GONE_SECONDS = 0.1


class Receiving:
    """Lives on the event loop. While memory is short nothing more is read, and reads are ended."""

    def __init__(
        self, memory: Memory, metrics: Metrics, *, idle: Callable[[], bool] = lambda: True
    ) -> None:
        """`idle`: no image is in progress, whose memory will be free in time."""
        self._memory = memory
        self._metrics = metrics
        self._idle = idle
        self._closed = False
        self._enough = asyncio.Event()  # memory is not short
        # In the order in which they began.
        self._requests: dict[Reader, Context] = {}
        self._streams: dict[Reader, Context] = {}
        self._next_look: asyncio.TimerHandle | None = None
        self._endings: set[asyncio.Task[None]] = set()

    @property
    def reading(self) -> bool:
        """A message is on its way."""
        return bool(self._requests or self._streams)

    async def request(
        self, context: Context, *, small: bool = False, seconds: float | None = None
    ) -> Any:
        """The only message of a call; `small`: of a kind that is read while memory is short, too;
        `seconds`: for how long it may be on its way.

        Raises InvalidInput for what cannot be parsed or never came, Overloaded while memory is
        short, Unavailable once closed, AbortError where the call was ended for one of these
        meanwhile, CancelledError if its client went, or gRPC told it that it is too large.
        """
        if self._closed:
            raise _closed()
        if self._is_short() and not small:
            raise self._refusal()
        late = None if seconds is None else self._ended_after(seconds)
        try:
            message = await self._read(context, self._requests)
        finally:
            if late is not None:
                late.cancel()
        if message is grpc.aio.EOF:
            await asyncio.sleep(GONE_SECONDS)  # gRPC cancels this soon, if that is why
            raise InvalidInput("the call ended without its message: send one")
        return message

    def messages(self, context: Context) -> AsyncIterator[Any]:
        """All of a call. While memory is short the next waits.

        Raises InvalidInput, and AbortError where the call was ended, as uploads hold all memory.
        """
        return _Messages(self, context)

    async def next_of_stream(self, context: Context) -> Any:
        """EOF if there is none."""
        while self._is_short():
            await self._enough.wait()
        return await self._read(context, self._streams)

    def close(self) -> None:
        """Ends all requests that are being read, and reads no more of them."""
        self._closed = True
        self._end_all(list(self._requests), self._requests, _closed)

    def _ended_after(self, seconds: float) -> asyncio.TimerHandle:
        """The read that this task begins now."""
        reader = asyncio.current_task()

        def too_late() -> InvalidInput:
            return InvalidInput(f"no message came within {seconds:g} s: send it with the call")

        loop = asyncio.get_running_loop()
        return loop.call_later(seconds, self._end_all, [reader], self._requests, too_late)

    def _is_short(self) -> bool:
        if self._next_look is None:
            self._look()
        return not self._enough.is_set()

    async def _read(self, context: Context, among: dict[Reader, Context]) -> Any:
        reader = asyncio.current_task()
        among[reader] = context
        try:
            message = await context.read()
        finally:
            among.pop(reader, None)
        if isinstance(message, PackshotError):
            raise message
        return message

    def parsed(self, raw: bytes, parse: Callable[[bytes], Any]) -> Any:
        """What `parse` makes of it, or if memory is short by now, what is raised in its place.

        Several large messages may be there before there was time for a look.
        """
        # It has been read, and is not to be ended for that beside what is said here.
        request = self._requests.pop(asyncio.current_task(), None)
        if len(raw) > LARGE_BYTES:
            self._look()
            if request is not None and not self._enough.is_set():
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
        if self._requests:
            newest = list(self._requests)[len(self._requests) // 2 :]
            self._end_all(newest, self._requests, self._refusal)
        elif self._idle():  # else a stream may wait for its own images
            newest = list(self._streams)[len(self._streams) // 2 :]
            self._end_all(newest, self._streams, self._refusal)

    def _look_again(self) -> None:
        self._next_look = None
        if self._requests or self._streams or not self._enough.is_set():
            self._look()

    def _end_all(
        self,
        readers: list[Reader],
        among: dict[Reader, Context],
        error: Callable[[], PackshotError],
    ) -> None:
        for reader in readers:
            ending = asyncio.create_task(_end(reader, among, error))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    def _refusal(self) -> Overloaded:
        self._metrics.short_of_memory.inc()
        return Overloaded(
            f"the server uses {self._memory.most_bytes} bytes of memory or more, and reads no "
            "images meanwhile: try again later, or send less at a time",
            retry_after_seconds=RETRY_AFTER_SECONDS,
        )


async def _end(
    reader: Reader, among: dict[Reader, Context], error: Callable[[], PackshotError]
) -> None:
    """From beside it: a read that is cancelled leaves its bytes in gRPC for ever."""
    context = among.pop(reader, None)
    if context is None:  # it was read, or ended, meanwhile
        return
    told = error()
    try:
        await context.abort(status_code(told), str(told))
    except grpc.aio.AbortError:
        pass  # as it should
    except Exception as gone:
        log.debug("a call was gone before it could be ended", exc_info=gone)


def _closed() -> Unavailable:
    return Unavailable("the server is draining: send the request to another")


class _Messages:
    """No generator, which would keep the last message until the next is asked for."""

    def __init__(self, receiving: Receiving, context: Context) -> None:
        self._receiving = receiving
        self._context = context

    def __aiter__(self) -> "_Messages":
        return self

    async def __anext__(self) -> Any:
        message = await self._receiving.next_of_stream(self._context)
        if message is grpc.aio.EOF:
            raise StopAsyncIteration
        return message
