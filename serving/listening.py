"""The gRPC server: its limits, its TLS, who is let in, and its port."""

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import msgspec

from packshot.channel import endpoint, is_loopback
from packshot.errors import InvalidInput
from serving.api.bearer import TokenInterceptor
from serving.api.calls import Calls
from serving.api.refusing import NoSuchMethod
from serving.metrics import Metrics
from serving.tokens import Tokens

if TYPE_CHECKING:
    from serving.certificates import Certificates

log = logging.getLogger("packshot.listening")

OTHER_CALLS = 64  # health and reflection
HELLO_MS = 20_000  # from connecting to the end of TLS and to HTTP/2's first words
NEVER_MS = 2**31 - 1
SILENCE_MS = 30_000  # then a ping asks whether the client is still there
PONG_MS = 60_000  # on a slow line the answer queues behind photographs


class Listening(msgspec.Struct, frozen=True, kw_only=True):
    """Where to listen, to whom, and for how much.

    `max_connection_age_seconds`: 0 for never.
    """

    host: str
    port: int
    tls_cert: Path | None
    tls_key: Path | None
    tls_client_ca: Path | None
    token_file: Path | None
    max_message_bytes: int
    max_connection_age_seconds: float


def new_server(listening: Listening, calls: Calls, no_such: NoSuchMethod) -> grpc.aio.Server:
    """Raises InvalidInput for an unusable token file."""
    return grpc.aio.server(
        interceptors=_interceptors(listening, calls, no_such),
        options=[
            ("grpc.so_reuseport", 0),  # else two servers would silently share the port
            ("grpc.max_receive_message_length", listening.max_message_bytes),
            ("grpc.max_send_message_length", listening.max_message_bytes),
            # A client that is gone, or never spoke, would hold its connection for minutes and its
            # half-sent requests, each of which counts below, for hours.
            ("grpc.server_handshake_timeout_ms", HELLO_MS),
            ("grpc.keepalive_time_ms", SILENCE_MS),
            ("grpc.http2.ping_timeout_ms", PONG_MS),
            # Clients look for servers only when a connection ends: without this, one that was added
            # would have new clients only. gRPC spreads it by a tenth, and lets calls end.
            ("grpc.max_connection_age_ms", _age_ms(listening)),
            # Clients that ping to keep idle connections open are welcome.
            ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
        ],
        # Refused by gRPC, which nothing counts: with room for more than `calls` refuses.
        maximum_concurrent_rpcs=calls.most + OTHER_CALLS,
    )


def _age_ms(listening: Listening) -> int:
    return round(listening.max_connection_age_seconds * 1000) or NEVER_MS


def add_port(server: grpc.aio.Server, listening: Listening, metrics: Metrics) -> int:
    """The port taken. Raises InvalidInput if it cannot be had, or for bad certificates."""
    address = endpoint(listening.host, listening.port)
    certificates = _certificates(listening, metrics)
    try:
        if certificates is None:
            return server.add_insecure_port(address)
        return server.add_secure_port(address, certificates.credentials())
    except RuntimeError as error:
        raise InvalidInput(
            f"--port {listening.port} on {listening.host} cannot be used: {error}"
        ) from error


def _certificates(listening: Listening, metrics: Metrics) -> "Certificates | None":
    if listening.tls_cert is None or listening.tls_key is None:
        return None
    from serving.certificates import Certificates, TlsFiles  # 9 MB, of use with TLS alone

    files = TlsFiles(
        cert=listening.tls_cert, key=listening.tls_key, client_ca=listening.tls_client_ca
    )
    return Certificates(files, metrics)


def _interceptors(
    listening: Listening, calls: Calls, no_such: NoSuchMethod
) -> list[grpc.aio.ServerInterceptor]:
    if listening.token_file is None:
        return []
    if listening.tls_cert is None and not is_loopback(listening.host):
        log.warning(
            "TOKENS TRAVEL IN PLAIN TEXT on %s: give --tls-cert and --tls-key, unless something in "
            "front of this server, such as a mesh, ends TLS",
            listening.host,
        )
    return [TokenInterceptor(Tokens(listening.token_file), calls, no_such)]
