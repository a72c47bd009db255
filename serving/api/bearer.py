"""Calls without a bearer token of the file are UNAUTHENTICATED."""

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeAlias

import grpc

from packshot.errors import Unauthenticated
from packshot.status import status_code
from serving.api.calls import Calls, Context
from serving.metrics import RpcKind
from serving.tokens import Tokens

EXEMPT = "/grpc.health.v1.Health/"  # probes carry no tokens
REFUSAL = "a valid bearer token is needed in the call's metadata: authorization: Bearer <token>"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every method but those of the health service."""

    def __init__(self, tokens: Tokens, calls: Calls) -> None:
        self._tokens = tokens
        self._calls = calls

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler:
        method = handler_call_details.method
        handler = await continuation(handler_call_details)  # looks it up; runs nothing
        if method.startswith(EXEMPT) or self._tokens.accept(
            _bearer(handler_call_details.invocation_metadata)
        ):
            return handler
        # Names of methods that do not exist would be labels of an endless set.
        if handler is None:
            return self._refusing("/unknown/unknown", "unary")
        return self._refusing(method, "bidi_stream" if handler.request_streaming else "unary")

    def _refusing(self, method: str, kind: RpcKind) -> Handler:
        """Of a stream, whatever the method is: it answers without waiting for the request."""
        _, service, name = method.split("/", 2)
        error = Unauthenticated(REFUSAL)
        code = status_code(error)

        async def refuse(_requests: object, context: Context) -> None:
            call = self._calls.begin(service, name, kind, context)
            self._calls.end(call, code)
            await context.abort(code, str(error))

        return grpc.stream_stream_rpc_method_handler(refuse)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token that a call shows, or nothing."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""
