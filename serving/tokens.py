"""The bearer tokens of a file, which may change while the server runs."""

import hashlib
import hmac
import logging
import time
from collections.abc import Callable
from pathlib import Path

from packshot.errors import InvalidInput
from serving.watched import stamp

log = logging.getLogger("packshot.tokens")

MIN_CHARACTERS = 16
LOOK_SECONDS = 1.0  # the file may be on a network: not on every call


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
            log.info("tokens in %s: %d", self._file, len(self._digests))


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
