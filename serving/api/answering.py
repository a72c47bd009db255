"""How every RPC ends: packshot's errors become statuses, everything else a logged INTERNAL."""

import functools
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol, TypeVar

import grpc

from packshot.errors import PackshotError, ServiceFailed
from packshot.status import status_code
from serving.metrics import Metrics

log = logging.getLogger("packshot.api")

Request = TypeVar("Request")
Reply = TypeVar("Reply")
Context = grpc.aio.ServicerContext[Any, Any]


class Servicer(Protocol):
    service: str
    metrics: Metrics


S = TypeVar("S", bound=Servicer)
Method = Callable[[S, Request, Context], Awaitable[Reply]]


def answering(
    method: Callable[[S, Request, Context], Awaitable[Reply]],
) -> Callable[[S, Request, Context], Coroutine[Any, Any, Reply]]:
    """Wraps a servicer's unary method: counts it by status and lets no error text slip out."""
    name = method.__name__

    @functools.wraps(method)
    async def call(self: S, request: Request, context: Context) -> Reply:
        code, details = grpc.StatusCode.CANCELLED, ""
        try:
            reply = await method(self, request, context)
            code = grpc.StatusCode.OK
            return reply
        except ServiceFailed as error:
            code, details = grpc.StatusCode.INTERNAL, _internal(name, error)
        except PackshotError as error:
            code, details = status_code(error), str(error)
        except Exception as error:
            code, details = grpc.StatusCode.INTERNAL, _internal(name, error)
        finally:
            self.metrics.handled.labels(self.service, name, code.name).inc()
        await context.abort(code, details)
        raise AssertionError("abort raises")

    return call


def _internal(method: str, error: Exception) -> str:
    request_id = uuid.uuid4().hex[:12]
    log.error("%s failed, request id %s", method, request_id, exc_info=error)
    return f"internal error; the server's log has it under request id {request_id}"
