"""`packshot probe`: is a server alive, or ready? For health checks of containers."""

import argparse
import os
import re
import sys
from typing import Any

import grpc

from packshot.channel import Connection
from packshot.cli_options import reaching_verb, tls_of
from packshot.errors import NotFound, PackshotError
from packshot.services import CLASSIFIER
from packshot.status import error_from_status

# grpc.health.v1 by hand: one string there, one number back. Its package would be a dependency of
# every client. https://github.com/grpc/grpc/blob/master/doc/health-checking.md
CHECK = "/grpc.health.v1.Health/Check"
STATES = {
    b"": "UNKNOWN",
    b"\x08\x00": "UNKNOWN",
    b"\x08\x01": "SERVING",
    b"\x08\x02": "NOT_SERVING",
}


def state(connection: Connection, service: str, timeout_seconds: float) -> str:
    """What the server says of one of its services: SERVING or NOT_SERVING.

    Raises Unavailable, DeadlineExceeded, or NotFound if it has no such service.
    """
    name = service.encode()
    with connection.channel(()) as channel:
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(CHECK)
        try:
            answer = check(b"\x0a" + _varint(len(name)) + name, timeout=timeout_seconds)
        except grpc.RpcError as error:
            raise _error(connection, service, error) from error
    return STATES.get(answer, f"not known to this probe ({answer.hex()})")


def _error(connection: Connection, service: str, error: grpc.RpcError) -> PackshotError:
    details = error.details() or ""
    if error.code() is grpc.StatusCode.NOT_FOUND:
        return NotFound(f"the server has no service {service}")
    if error.code() is grpc.StatusCode.UNAVAILABLE:
        details = connection.unanswered(details)
    return error_from_status(error.code(), details)


def probe(options: argparse.Namespace) -> int:
    """0 or 1: Docker keeps the other exit statuses of a health check for itself."""
    what = f"{options.target}: {options.service or 'the server'}"
    try:
        connection = Connection(target=options.target, tls=tls_of(options))
        found = state(connection, options.service, options.timeout)
    except NotFound as error:
        print(f"{options.target}: {error}", file=sys.stderr)
        return 1
    except PackshotError as error:
        print(f"{what} did not tell: {error}", file=sys.stderr)
        return 1
    print(f"{what} is {found}", file=sys.stderr if found != "SERVING" else sys.stdout)
    return int(found != "SERVING")


def add_probe_verb(verbs: Any) -> None:
    text = "ask a server's health service once; exit status 0 if SERVING, else 1"
    verb = reaching_verb(verbs, "probe", probe, text, timeout_seconds=1.0)
    if port := _port_beside():
        verb.set_defaults(target=f"127.0.0.1:{port}")
    verb.add_argument(
        "--service",
        default=CLASSIFIER,
        help='"" asks whether it is alive; the default whether it is ready (%(default)s)',
    )


def _port_beside() -> int | None:
    """Of the server beside which a health check runs, where its environment tells.

    Beside a Service of that name Kubernetes sets PACKSHOT_PORT=tcp://10.0.0.1:8001, which is
    skipped here as by the server.
    """
    text = os.environ.get("PACKSHOT_PORT", "")
    port = int(text) if re.fullmatch("[0-9]{1,5}", text) else 0
    return port if 1 <= port <= 65_535 else None


def _varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(rest) if rest else bytes([low])
