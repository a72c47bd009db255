"""Records on disk: JSON with the number of its format, read strictly."""

from pathlib import Path
from typing import TypeVar

import msgspec

from packshot.errors import DamagedFile

T = TypeVar("T")


class Head(msgspec.Struct, frozen=True):
    """What any format has."""

    format: int


def decode_record(content: bytes, kind: type[T], *, path: Path, what: str, reads: int) -> T:
    """The record in a file's content. Raises DamagedFile, telling another format from damage.

    `what`: the record's name in messages. `reads`: the number of the format that is understood.
    """
    try:
        found = msgspec.json.decode(content, type=Head).format
        if found == reads:
            return msgspec.json.decode(content, type=kind)
    except msgspec.MsgspecError as error:
        raise DamagedFile(f"{path} is not a {what} of format {reads}: {error}") from error
    remedy = "update packshot" if found > reads else "make it anew"
    raise DamagedFile(f"{path} has format {found}; this packshot reads format {reads}: {remedy}")
