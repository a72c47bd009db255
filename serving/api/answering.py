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
from serving.api.calls import Call, Calls, Context
from serving.api.parsing import all_readable, readable
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
Abort = tuple[grpc.StatusCode, str, tuple[Any, ...]]
"""Status, details and trailers."""


class _Ended(Exception):
    """A call that ends with an error status."""

    def __init__(self, code: grpc.StatusCode, details: str, trailers: tuple[Any, ...]) -> None:
        super().__init__(details)
        self.abort = (code, details[:MAX_DETAILS], trailers)


def answering(
    method: Callable[[S, Request, Call], Awaitable[Reply]],
) -> Callable[[S, Request, Context], Coroutine[Any, Any, Reply]]:
    """Wraps a unary method: counts it by status and lets no error text slip out."""
    name = method.__name__

    @functools.wraps(method)
    async def unary(self: S, request: Request, context: Context) -> Reply:
        try:
            with _calling(self, name, "unary", context) as call:
                return await method(self, readable(request), call)
        except _Ended as ended:
            told = ended.abort
        # Here, so that gRPC's error has neither ours nor the request: it is freed late.
        del request
        await _abort(context, told)
        raise AssertionError("abort raises")

    return unary


def answering_stream(
    method: Callable[[S, AsyncIterator[Request], Call], AsyncGenerator[Reply, None]],
) -> Callable[[S, AsyncIterator[Request], Context], AsyncIterator[Reply]]:
    """Like `answering`, for a method that reads a stream and writes one."""
    name = method.__name__

    @functools.wraps(method)
    async def stream(
        self: S, requests: AsyncIterator[Request], context: Context
    ) -> AsyncIterator[Reply]:
        try:
            with _calling(self, name, "bidi_stream", context) as call:
                # Closed before the call counts as ended, also where the client went away.
                async with aclosing(method(self, all_readable(requests), call)) as replies:
                    async for reply in replies:
                        yield reply
            return
        except _Ended as ended:
            told = ended.abort
        await _abort(context, told)

    return stream


async def _abort(context: Context, told: Abort) -> None:
    """Raises AbortError, or CancelledError where the caller had gone before it could be told."""
    try:
        await context.abort(*told)
    except grpc.aio.AbortError:
        raise
    except Exception as error:  # of no public type; gRPC would log it with three tracebacks
        raise asyncio.CancelledError from error


@contextmanager
def _calling(self: Servicer, name: str, kind: RpcKind, context: Context) -> Iterator[Call]:
    """Begins and ends the call's record; raises _Ended for what the block raises."""
    code = grpc.StatusCode.CANCELLED
    call = self.calls.begin(self.service, name, kind, context)
    try:
        yield call
        code = grpc.StatusCode.OK
    except (asyncio.CancelledError, GeneratorExit):
        if context.time_remaining() == 0:
            code = grpc.StatusCode.DEADLINE_EXCEEDED
        raise
    except Exception as error:
        code = status_code(error)
        internal = code is grpc.StatusCode.INTERNAL
        details = internal_error(call, error) if internal else str(error)
        raise _Ended(code, details, _pushback(error, call)) from error
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
