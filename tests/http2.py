"""HTTP/2 by hand, for connections that no gRPC client would make."""

import socket
import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, SETTINGS, PING = 0, 1, 4, 6
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hello() -> bytes:
    return PREFACE + frame(SETTINGS, b"")


def request_headers(method: str, stream: int = 1, *, timeout: str = "1H") -> bytes:
    """A gRPC call's headers, as literals that no table remembers; `timeout` as gRPC writes it."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
        "grpc-timeout": timeout,
    }  # fmt: skip
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, block, flags=END_HEADERS, stream=stream)


def half_a_message(stream: int = 1) -> bytes:
    """The first half of a message of 1000 bytes."""
    return frame(DATA, struct.pack(">BI", 0, 1000) + bytes(500), stream=stream)


def whole_message(message: bytes, stream: int = 1) -> bytes:
    """A request of one frame."""
    prefixed = struct.pack(">BI", 0, len(message)) + message
    return frame(DATA, prefixed, flags=END_STREAM, stream=stream)


def connect(target: str) -> socket.socket:
    host, port = target.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def frames(connection: socket.socket) -> Iterator[tuple[int, int]]:
    """Kind and stream of each that the other side sends."""
    with connection.makefile("rb") as reader:
        while header := reader.read(9):
            reader.read(int.from_bytes(header[:3], "big"))
            yield header[3], int.from_bytes(header[5:], "big")
