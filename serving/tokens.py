"""Bearer tokens: calls without one of those in a file are UNAUTHENTICATED."""

import hashlib
import hmac
import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from typing import Any, TypeAlias

import grpc

from packshot.errors import InvalidInput, Unauthenticated
from packshot.status import status_code
from serving.access_log import Access, AccessLog
from serving.metrics import Metrics, RpcKind
from serving.request_id import request_id
from serving.watched import stamp

log = logging.getLogger("packshot.tokens")

MIN_CHARACTERS = 16
LOOK_SECONDS = 1.0  # the file may be on a network: not on every call
EXEMPT = "/grpc.health.v1.Health/"  # probes carry no tokens
REFUSAL = "a valid bearer token is needed in the call's metadata: authorization: Bearer <token>"

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any] | None"


class Tokens:
    """The tokens of a file, kept as digests; read again when the file changes."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """Raises InvalidInput for a file without a token, or with one that cannot be used."""
        self._file = file
        self._clock = clock
        self._stamp = stamp(file)
        self._looked = clock()
        self._digests = _read(file)

    def accept(self, token: str) -> bool:
        """Compared with each of them in constant time, without stopping at the right one."""
        self._look()
        digest = _digest(token)
        return sum(hmac.compare_digest(digest, one) for one in self._digests) > 0

    def _look(self) -> None:
        if self._clock() - self._looked < LOOK_SECONDS:
            return
        self._looked = self._clock()
        now = stamp(self._file)
        if now == self._stamp:
            return
        self._stamp = now
        try:
            self._digests = _read(self._file)
        except InvalidInput as error:
            log.error("the old tokens go on: %s", error)
        else:
            log.info("%d tokens from %s", len(self._digests), self._file)


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Stands before every method but those of the health service."""

    def __init__(self, tokens: Tokens, metrics: Metrics, access: AccessLog) -> None:
        self._tokens = tokens
        self._metrics = metrics
        self._access = access

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

        async def refuse(_requests: object, context: grpc.aio.ServicerContext[Any, Any]) -> None:
            self._metrics.rpc_started(service, name, kind)
            code = status_code(error)
            self._metrics.rpc_handled(service, name, code.name, 0.0, kind)
            if self._access.has_room(code.name):
                asked = request_id(tuple(context.invocation_metadata() or ()))
                self._access.write(
                    Access(
                        request_id=asked, method=name, code=code.name, images=0, total_ms=0.0,
                        peer=context.peer(),
                    )
                )  # fmt: skip
            await context.abort(code, str(error))

        return grpc.stream_stream_rpc_method_handler(refuse)


def _bearer(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The token that a call shows, or nothing."""
    for key, value in metadata:
        if key == "authorization" and isinstance(value, str):
            scheme, _, token = value.partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""


def _read(file: Path) -> tuple[bytes, ...]:
    """Digests of the file's tokens. A message names lines, never what is in them."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        why = "it is no text" if isinstance(error, ValueError) else error.strerror
        raise InvalidInput(f"--token-file {file} cannot be read: {why}") from None
    digests = []
    for number, line in enumerate(map(str.strip, lines), start=1):
        if not line or line.startswith("#"):
            continue
        if len(line) < MIN_CHARACTERS:
            raise InvalidInput(
                f"--token-file {file}, line {number}: {len(line)} characters; a token has "
                f"{MIN_CHARACTERS} or more"
            )
        if not line.isascii() or not line.isprintable() or " " in line:
            raise InvalidInput(
                f"--token-file {file}, line {number}: a token is of printable ASCII without spaces"
            )
        digests.append(_digest(line))
    if not digests:
        raise InvalidInput(f"--token-file {file} holds no token: write one a line")
    return tuple(digests)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
