"""What the load tester and its client processes say to each other: length, then MessagePack."""

import struct
from io import RawIOBase

import msgspec

from packshot.load.tally import Tally
from packshot.load_plan import Api, LoadPlan

LENGTH = struct.Struct("<I")


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Said once. `tls`: fields of a `Tls`, or whether to use it."""

    target: str
    tls: dict[str, str | None] | bool
    token: str | None
    api: Api
    requests: list[bytes]
    images_per_request: int


class Order(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Run the part of sender `number` among `senders`, from `begin` on the machine's clock."""

    plan: LoadPlan
    number: int
    senders: int
    begin: float


class Stop(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Send nothing more: the window closes `at`, on the machine's clock, before its time."""

    at: float


class GiveUp(msgspec.Struct, frozen=True, tag=True):
    """Wait for no answer any more."""


class Ready(msgspec.Struct, frozen=True, tag=True):
    """Set up."""


class Progress(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """Since the run began, warm-up included."""

    images: int
    failed: int
    in_flight: int


class Done(msgspec.Struct, frozen=True, tag=True):
    """The run is over."""

    tally: Tally


Message = Setup | Order | Stop | GiveUp | Ready | Progress | Done
_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(Message)


def encoded(message: Message) -> bytes:
    body = _encoder.encode(message)
    return LENGTH.pack(len(body)) + body


def decoded(body: bytes | bytearray) -> Message:
    return _decoder.decode(body)


def read(stream: RawIOBase) -> Message | None:
    """None at the end of the stream, which is not buffered: a message that came right after would
    lie in the buffer, where no event loop sees it.
    """
    head = _read(stream, LENGTH.size)
    return decoded(_read(stream, *LENGTH.unpack(head))) if len(head) == LENGTH.size else None


def _read(stream: RawIOBase, size: int) -> bytearray:
    content, got = bytearray(size), 0
    while got < size and (count := stream.readinto(memoryview(content)[got:])):
        got += count
    return content[:got]
