"""Calls without a bearer token of the file are UNAUTHENTICATED."""

from collections.abc import Awaitable, Callable, Iterable

import grpc

from serving.api.calls import Calls
from serving.api.refusing import UNKNOWN, Handler, NoSuchMethod, refusing
from serving.metrics import RpcKind
from serving.tokens import Tokens

EXEMPT = "/grpc.health.v1.Health/"  # probes carry no tokens
REFUSAL = "a valid bearer token is needed in the call's metadata: authorization: Bearer <token>"


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every method but those of the health service."""

    def __init__(self, tokens: Tokens, calls: Calls, no_such: NoSuchMethod) -> None:
        self._tokens = tokens
        self._calls = calls
        self._no_such = no_such

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable["Handler | None"]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> "Handler | None":
        method = handler_call_details.method
        handler = await continuation(handler_call_details)  # looks it up; runs nothing
        assert handler is not None  # NoSuchMethod's, if no other
        if method.startswith(EXEMPT) or self._tokens.accept(
            _bearer(handler_call_details.invocation_metadata)
        ):
            return handler
        kind: RpcKind = "bidi_stream" if handler.response_streaming else "unary"
        if handler is self._no_such.handler:
            method, kind = UNKNOWN, "unary"
        return refusing(self._calls, method, kind, grpc.StatusCode.UNAUTHENTICATED, REFUSAL)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token that a call shows, or nothing."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""
