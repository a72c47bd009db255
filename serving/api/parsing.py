"""Bytes that are no message are their sender's mistake, and are answered as such.

gRPC would answer UNKNOWN with the text of Python's exception, and log a traceback each time. Nor is
memory spent on messages of too many parts.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import grpc
from google.protobuf.descriptor import Descriptor
from google.protobuf.message import DecodeError

from packshot.errors import InvalidInput
from serving.api.fields import has_more_fields
from serving.api.receiving import Receiving

Handlers = Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]

SMALL_BYTES = 64 * 1024  # parsed, a few megabytes at most: not worth counting
MAX_FIELDS = 10_000  # a request for 1024 images has a third of them
MAX_PACKED_BYTES = 4 * 1024 * 1024  # a tensor of a million numbers


class Registrar:
    """What generated code adds a servicer to, instead of the server itself.

    Its methods read their requests themselves, unary ones too (`serving.api.receiving`), and get an
    InvalidInput in the place of what is no message of theirs, or one of too many parts.
    """

    def __init__(self, server: grpc.aio.Server, receiving: Receiving) -> None:
        self._server = server
        self._receiving = receiving

    def add_generic_rpc_handlers(self, handlers: Sequence[Any]) -> None:
        """Nothing: the same handlers come once more, by name, to the method below."""

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        forgiving = {
            name: _forgiving(handler, self._receiving) for name, handler in handlers.items()
        }
        handler = grpc.method_handlers_generic_handler(service, forgiving)
        self._server.add_generic_rpc_handlers((handler,))


def _forgiving(handler: Any, receiving: Receiving) -> Any:
    parse: Callable[[bytes], Any] = handler.request_deserializer
    kind: Descriptor = handler.request_deserializer.__self__.DESCRIPTOR

    def parse_or_refuse(raw: bytes) -> Any:
        try:
            large = len(raw) > SMALL_BYTES
            if large and has_more_fields(raw, kind, MAX_FIELDS, MAX_PACKED_BYTES):
                return InvalidInput(
                    f"the request has more than {MAX_FIELDS} fields, or more than "
                    f"{MAX_PACKED_BYTES} bytes of numbers one by one: send fewer, and tensors as "
                    "raw_input_contents"
                )
            return parse(raw)
        except DecodeError:
            return InvalidInput(
                "the request cannot be parsed: it is no message of this method's type"
            )

    parse_in_memory = partial(receiving.parsed, parse=parse_or_refuse)
    if handler.request_streaming:
        return handler._replace(request_deserializer=parse_in_memory)
    # On the wire there is no difference to a method whose request gRPC reads beforehand.
    if handler.response_streaming:
        return grpc.stream_stream_rpc_method_handler(
            handler.unary_stream, parse_in_memory, handler.response_serializer
        )
    return grpc.stream_unary_rpc_method_handler(
        handler.unary_unary, parse_in_memory, handler.response_serializer
    )
