"""Bytes that are no message are their sender's mistake, and are answered as such.

gRPC would answer UNKNOWN with the text of Python's exception, and log a traceback each time.
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError

from packshot.errors import InvalidInput

Request = TypeVar("Request")
Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]

UNREADABLE = object()
"""Given to a method in the place of a request that cannot be parsed."""


class Registrar:
    """What generated code adds a servicer to, instead of the server itself.

    Its methods get UNREADABLE for what is no message of theirs, and look with `readable`.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: the same handlers come once more, by name, to the method below."""

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        forgiving = {name: _forgiving(handler) for name, handler in handlers.items()}
        handler = grpc.method_handlers_generic_handler(service, forgiving)
        self._server.add_generic_rpc_handlers((handler,))


def readable(request: Request) -> Request:
    """Raises InvalidInput for UNREADABLE."""
    if request is UNREADABLE:
        raise InvalidInput("the request cannot be parsed: it is no message of this method's type")
    return request


async def all_readable(requests: AsyncIterator[Request]) -> AsyncIterator[Request]:
    """Raises InvalidInput for UNREADABLE."""
    async for request in requests:
        yield readable(request)


def _forgiving(handler: Any) -> Any:
    parse: Callable[[bytes], Any] = handler.request_deserializer

    def parse_or_mark(raw: bytes) -> Any:
        try:
            return parse(raw)
        except DecodeError:
            return UNREADABLE

    return handler._replace(request_deserializer=parse_or_mark)
