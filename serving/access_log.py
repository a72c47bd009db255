"""The access log: one line a request, up to a rate; errors of the server always."""

import logging
import time
from collections.abc import Callable

import msgspec

from serving.metrics import Metrics

log = logging.getLogger("packshot.access")

SERVER_ERRORS = frozenset({"INTERNAL", "UNKNOWN"})


class Access(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is told of a request; what is not known, such as the model of an unknown one, is None.

    `code`: the status's name; `peer`: as gRPC names it, such as ipv4:10.0.0.7:41002.
    """

    request_id: str
    method: str
    code: str
    images: int
    total_ms: float
    peer: str
    model: str | None = None
    version: int | None = None
    engine: str | None = None
    decode_ms: float | None = None
    queue_ms: float | None = None
    infer_ms: float | None = None
    trace_id: str | None = None


class AccessLog:
    """Writes at most `per_second` lines a second, in bursts of as many; 0 leaves the errors."""

    def __init__(
        self, per_second: float, metrics: Metrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._bucket = TokenBucket(per_second, clock)
        self._metrics = metrics
        self._suppressed = 0

    def has_room(self, code: str) -> bool:
        """Whether a request of that status is to be written; one that is not is counted."""
        if code in SERVER_ERRORS or self._bucket.take():
            return True
        self._suppressed += 1
        self._metrics.access_lines_suppressed.inc()
        return False

    def write(self, access: Access) -> None:
        """For which there was room."""
        failed = access.code in SERVER_ERRORS
        extra = msgspec.to_builtins(access)
        if self._suppressed:
            extra["suppressed"], self._suppressed = self._suppressed, 0
        log.log(logging.ERROR if failed else logging.INFO, "request", extra=extra)


class TokenBucket:
    """Lets `per_second` through a second, and after a pause as many as that at once, or one."""

    def __init__(self, per_second: float, clock: Callable[[], float]) -> None:
        self._per_second = per_second
        self._most = max(1.0, per_second) if per_second > 0 else 0.0
        self._clock = clock
        self._tokens = self._most
        self._filled_at = clock()

    def take(self) -> bool:
        now = self._clock()
        gained = (now - self._filled_at) * self._per_second
        self._tokens = min(self._most, self._tokens + gained)
        self._filled_at = now
        if self._tokens < 1:
            return False
        self._tokens -= 1
        return True
