"""The id under which a request is found again in logs and traces."""

import re
import secrets
from collections.abc import Iterable

HEADER = "x-request-id"
SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,64}")


def request_id(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """The client's own, if it is fit to be logged; else 16 random hexadecimal digits."""
    for key, value in metadata:
        if key == HEADER and isinstance(value, str) and SANE.fullmatch(value):
            return value
    return secrets.token_hex(8)
