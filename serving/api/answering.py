"""How every RPC ends: packshot's errors become statuses, everything else a logged INTERNAL."""

import asyncio
import functools
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Protocol, TypeVar

import grpc

from packshot.errors import Overloaded
from packshot.status import status_code
from serving.api.calls import Call, Calls
from serving.api.receiving import Context
from serving.metrics import RpcKind

log = logging.getLogger("packshot.api")

# A message may quote its client; a character can become 12 bytes, and above 8 kB gRPC drops some.
MAX_DETAILS = 600

Request = TypeVar("Request")
Reply = TypeVar("Reply")


class Servicer(Protocol):
    service: str
    calls: Calls


S = TypeVar("S", bound=Servicer)


class _Ended(Exception):
    """A call that ends with an error status, of which `telling` tells the client."""

    def __init__(self, telling: Coroutine[Any, Any, None]) -> None:
        super().__init__()
        self.telling = telling


def answering(
    method: Callable[[S, Request, Call], Awaitable[Reply]], *, small: bool = False
) -> Callable[[S, Request, Context], Coroutine[Any, Any, Reply]]:
    """Wraps a unary method: counts it by status and lets no error text slip out.

    What it makes reads its request itself (`serving.api.parsing.Registrar` tells gRPC so).
    `small`: requests have no images, and are read while memory is short, too, as probes are.
    """
    name = method.__name__

    async def answer(self: S, context: Context) -> Reply:
        with _calling(self, name, "unary", context) as call:
            self.calls.check_room()
            receiving = self.calls.receiving
            return await method(
                self, call.received(await receiving.request(context, small=small)), call
            )

    @functools.wraps(method)
    async def unary(self: S, requests: Request, context: Context) -> Reply:
        try:
            return await answer(self, context)
        except _Ended as ended:
            telling = ended.telling
        # A call keeps gRPC's error, and that this frame: in turn it must not keep the call.
        del requests, context
        await _tell(telling)
        raise AssertionError("abort raises")

    return unary


def answering_small(
    method: Callable[[S, Request, Call], Awaitable[Reply]],
) -> Callable[[S, Request, Context], Coroutine[Any, Any, Reply]]:
    """`answering` for methods whose requests are small."""
    return answering(method, small=True)


def answering_stream(
    method: Callable[[S, AsyncIterator[Request], Call], AsyncGenerator[Reply, None]],
) -> Callable[[S, AsyncIterator[Request], Context], Coroutine[Any, Any, None]]:
    """Like `answering`, for a method that reads a stream and writes one.

    What it makes writes its answers itself: a generator of which gRPC could not write the last is
    ended some time later, when the call that it asks for has been freed.
    """
    name = method.__name__

    async def answer(self: S, context: Context) -> None:
        with _calling(self, name, "bidi_stream", context) as call:
            self.calls.check_room()
            # Else gRPC would send it again to end a call of which the first answer is on its way.
            await context.send_initial_metadata(())
            messages = self.calls.receiving.messages(context)
            # Closed before the call counts as ended, also where the client went away.
            async with aclosing(method(self, messages, call)) as replies:
                async for reply in replies:
                    await write(context, reply)

    @functools.wraps(method)
    async def stream(self: S, requests: AsyncIterator[Request], context: Context) -> None:
        try:
            await answer(self, context)
            return
        except _Ended as ended:
            telling = ended.telling
        del requests, context
        await _tell(telling)

    return stream


async def write(context: Context, reply: object) -> None:
    """Raises CancelledError where the caller had gone, or this server."""
    try:
        await context.write(reply)
    except (grpc.aio.AbortError, grpc.aio.UsageError):
        raise
    except grpc.aio.BaseError as gone:
        raise asyncio.CancelledError from gone


async def _tell(telling: Coroutine[Any, Any, None]) -> None:
    """Raises AbortError, or CancelledError where the caller had gone before it could be told."""
    try:
        await telling
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # of no public type; gRPC would log it with three tracebacks
        raise asyncio.CancelledError from error


async def _told(error: grpc.aio.AbortError) -> None:
    """Of a call that was ended from beside it."""
    raise error.with_traceback(None)


@contextmanager
def _calling(self: Servicer, name: str, kind: RpcKind, context: Context) -> Iterator[Call]:
    """Begins and ends the call's record; raises _Ended for what the block raises."""
    code = grpc.StatusCode.CANCELLED
    call = self.calls.begin(self.service, name, kind, context)
    try:
        yield call
        code = grpc.StatusCode.OK
    except (asyncio.CancelledError, GeneratorExit):
        if call.late:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise
    except grpc.aio.AbortError as error:
        code = context.code() or grpc.StatusCode.CANCELLED
        raise _Ended(_told(error)) from None
    except Exception as error:
        code = status_code(error)
        internal = code is grpc.StatusCode.INTERNAL
        details = internal_error(call, error) if internal else str(error)
        trailers = _pushback(error, call)
        raise _Ended(context.abort(code, details[:MAX_DETAILS], trailers)) from error
    finally:
        self.calls.end(call, code)


def internal_error(call: Call, error: Exception) -> str:
    """What a client is told of an error that is not its own; the log has the rest."""
    log.error("%s failed, request id %s", call.method, call.request_id, exc_info=error)
    return f"internal error; the server's log has it under request id {call.request_id}"


def _pushback(error: Exception, call: Call) -> tuple[tuple[str, str], ...]:
    """Tells gRPC's own retries when to come back (gRFC A6), or with -1 that they should not.

    They would wait beyond the deadline, and nobody would ever hear why.
    """
    if not isinstance(error, Overloaded) or error.retry_after_seconds is None:
        return ()
    left, after = call.timeout_seconds, error.retry_after_seconds
    too_late = left is not None and after >= left
    return (("grpc-retry-pushback-ms", "-1" if too_late else str(round(after * 1000))),)
