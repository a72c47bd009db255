"""How every RPC ends: packshot's errors become statuses, everything else a logged INTERNAL."""

import asyncio
import functools
import logging
import time
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc

from packshot.errors import Overloaded
from packshot.status import status_code
from serving.metrics import Metrics

log = logging.getLogger("packshot.api")

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """Counts the calls in progress, so that a drain knows when it is done."""

    def __init__(self) -> None:
        self.in_progress = 0
        self._none = asyncio.Event()
        self._none.set()

    def started(self) -> None:
        self.in_progress += 1
        self._none.clear()

    def ended(self) -> None:
        self.in_progress -= 1
        if self.in_progress == 0:
            self._none.set()

    async def none(self) -> None:
        await self._none.wait()


class Servicer(Protocol):
    service: str
    metrics: Metrics
    calls: Calls


S = TypeVar("S", bound=Servicer)


def answering(
    method: Callable[[S, Request, Context], Awaitable[Reply]],
) -> Callable[[S, Request, Context], Coroutine[Any, Any, Reply]]:
    """Wraps a servicer's unary method: counts it by status and lets no error text slip out."""
    name = method.__name__

    @functools.wraps(method)
    async def call(self: S, request: Request, context: Context) -> Reply:
        code, details = grpc.StatusCode.CANCELLED, ""
        trailers: tuple[tuple[str, str], ...] = ()
        self.calls.started()
        self.metrics.rpc_started(self.service, name)
        started = time.monotonic()
        try:
            reply = await method(self, request, context)
            code = grpc.StatusCode.OK
            return reply
        except asyncio.CancelledError:
            if context.time_remaining() == 0:
                code = grpc.StatusCode.DEADLINE_EXCEEDED
            raise
        except Exception as error:
            code = status_code(error)
            details = _internal(name, error) if code is grpc.StatusCode.INTERNAL else str(error)
            trailers = _pushback(error)
        finally:
            seconds = time.monotonic() - started
            self.metrics.rpc_handled(self.service, name, code.name, seconds)
            self.calls.ended()
        await context.abort(code, details, trailers)
        raise AssertionError("abort raises")

    return call


def _internal(method: str, error: Exception) -> str:
    request_id = uuid.uuid4().hex[:12]
    log.error("%s failed, request id %s", method, request_id, exc_info=error)
    return f"internal error; the server's log has it under request id {request_id}"


def _pushback(error: Exception) -> tuple[tuple[str, str], ...]:
    """Tells gRPC's own retries when to come back (gRFC A6)."""
    if isinstance(error, Overloaded) and error.retry_after_seconds is not None:
        return (("grpc-retry-pushback-ms", str(round(error.retry_after_seconds * 1000))),)
    return ()
