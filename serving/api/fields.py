"""How many fields a message has, found out before memory is spent on them.

A field can be of two bytes, and takes a hundred once it is parsed, a packed number of one byte
takes eight: the largest message that is taken in could become gigabytes, and hold the event loop
for seconds.
"""

from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import DecodeError

VARINT, EIGHT_BYTES, LENGTH_DELIMITED, GROUP, END_OF_GROUP, FOUR_BYTES = range(6)
SIZES = {GROUP: 0, END_OF_GROUP: 0, EIGHT_BYTES: 8, FOUR_BYTES: 4}
LONGEST_VARINT = 10
NOT_PACKED = (
    FieldDescriptor.TYPE_MESSAGE, FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES,
)  # fmt: skip


def has_more_fields(raw: bytes, kind: Descriptor, most: int, most_packed: int) -> bool:
    """Whether a message of that kind, and those within it, have more. Raises DecodeError.

    `most_packed`: bytes of numbers that are packed into fields.

    https://protobuf.dev/programming-guides/encoding/
    """
    found, packed, parts = 0, 0, [(0, len(raw), kind)]
    while parts:
        at, end, kind = parts.pop()
        while at < end:
            found += 1
            if found > most:
                return True
            tag, at = _varint(raw, at)
            number, wire_type = divmod(tag, 8)
            if wire_type == VARINT:
                _, at = _varint(raw, at)
            elif wire_type == LENGTH_DELIMITED:
                size, at = _varint(raw, at)
                if number in _messages(kind):
                    parts.append((at, at + size, _messages(kind)[number]))
                elif number in _numbers(kind):
                    packed += size
                    if packed > most_packed:
                        return True
                at += size
            else:
                at += _size(wire_type)
        if at > end:
            raise DecodeError("a field ends behind the message that it is in")
    return False


@cache
def _messages(kind: Descriptor) -> dict[int, Descriptor]:
    """Numbers of the fields that are messages, and what those are."""
    fields = kind.fields_by_number.items()
    return {number: field.message_type for number, field in fields if field.message_type}


@cache
def _numbers(kind: Descriptor) -> frozenset[int]:
    """Fields that can only be of this wire type where numbers are packed into them."""
    fields = kind.fields_by_number.items()
    return frozenset(number for number, field in fields if field.type not in NOT_PACKED)


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """The number, and where it ends."""
    value = 0
    for place, byte in enumerate(raw[at : at + LONGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    raise DecodeError("a number without an end")


def _size(wire_type: int) -> int:
    if wire_type not in SIZES:
        raise DecodeError(f"wire type {wire_type}")
    return SIZES[wire_type]
