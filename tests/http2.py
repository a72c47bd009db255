"""HTTP/2 by hand, for connections that no gRPC client would make."""

import socket
import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, RESET, SETTINGS, PING = 0, 1, 3, 4, 6
INITIAL_WINDOW_SIZE = 4
CANCEL = 8
END_STREAM, END_HEADERS = 1, 4


def frame(kind: int, payload: bytes, *, flags: int = 0, stream: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def hello(*, window: int | None = None) -> bytes:
    """`window`: bytes that it takes of each answer."""
    given = b"" if window is None else struct.pack(">HI", INITIAL_WINDOW_SIZE, window)
    return PREFACE + frame(SETTINGS, given)


def request_headers(method: str, stream: int = 1, **more: str) -> bytes:
    """A gRPC call's headers, as literals that no table remembers; `more`: such as grpc_timeout."""
    fields = {
        ":method": "POST", ":scheme": "http", ":path": method, ":authority": "localhost",
        "content-type": "application/grpc", "te": "trailers",
        **{name.replace("_", "-"): value for name, value in more.items()},
    }  # fmt: skip
    block = b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )
    return frame(HEADERS, block, flags=END_HEADERS, stream=stream)


def message(body: bytes, stream: int = 1, *, last: bool = False) -> bytes:
    """One of at most 16 kB; `last`: of the call."""
    prefixed = struct.pack(">BI", 0, len(body)) + body
    return frame(DATA, prefixed, flags=END_STREAM if last else 0, stream=stream)


def reset(stream: int = 1) -> bytes:
    return frame(RESET, struct.pack(">I", CANCEL), stream=stream)


def half_a_message(stream: int = 1) -> bytes:
    """The first half of a message of 1000 bytes."""
    return frame(DATA, struct.pack(">BI", 0, 1000) + bytes(500), stream=stream)


def connect(target: str) -> socket.socket:
    host, port = target.split(":")
    return socket.create_connection((host, int(port)), timeout=60)


def frames(connection: socket.socket) -> Iterator[tuple[int, int]]:
    """Kind and stream of each that the other side sends."""
    with connection.makefile("rb") as reader:
        while header := reader.read(9):
            reader.read(int.from_bytes(header[:3], "big"))
            yield header[3], int.from_bytes(header[5:], "big")
