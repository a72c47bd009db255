"""Calls that end before any method of ours has them: counted and logged like all others."""

from typing import Any, TypeAlias

import grpc

from serving.api.calls import Calls
from serving.api.receiving import Context
from serving.metrics import RpcKind

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

# Names of methods that do not exist would be labels of an endless set.
UNKNOWN = "/unknown/unknown"


class NoSuchMethod(grpc.GenericRpcHandler):
    """To be added last: takes what no other handler knows."""

    def __init__(self, calls: Calls) -> None:
        message = "no such method: server reflection tells those there are"
        self.handler = refusing(calls, UNKNOWN, "unary", grpc.StatusCode.UNIMPLEMENTED, message)

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler:
        return self.handler


def refusing(
    calls: Calls, method: str, kind: RpcKind, code: grpc.StatusCode, message: str
) -> Handler:
    """Of a stream, whatever the method is: it answers without waiting for the request."""
    _, service, name = method.split("/", 2)

    async def refuse(_requests: object, context: Context) -> None:
        call = calls.begin(service, name, kind, context)
        calls.end(call, code)
        await context.abort(code, message)

    return grpc.stream_stream_rpc_method_handler(refuse)
