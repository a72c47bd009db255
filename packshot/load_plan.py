"""What a load test does: to whom, how much, for how long."""

import math
from typing import Literal

import msgspec

from packshot.cores import available_cores
from packshot.errors import InvalidInput

Api = Literal["packshot", "open-inference"]
Arrivals = Literal["poisson", "constant"]

MOST_PROCESSES = 8  # chosen by itself; more may be asked for
MOST_IN_FLIGHT = 2048  # of all processes; gRPC holds each one's bytes until it is answered
MOST_RATE = 100_000  # requests a second; a process sends a few thousand, and each is held in memory
ABOVE_ZERO = ("rate", "concurrency", "seconds", "images_per_request", "timeout_seconds", "slo_ms")
NOT_BELOW_ZERO = ("warmup_seconds", "processes", "seed")


class LoadPlan(msgspec.Struct, frozen=True, kw_only=True):
    """`rate` requests a second (open loop), or without it `concurrency` in flight (closed loop).

    `arrivals` of an open loop: poisson, as of many users who know nothing of each other, or
    constant, evenly spaced. `warmup_seconds` are loaded like the `seconds` after them, but not
    counted. `timeout_seconds` is the deadline of each request, from the moment when it was due.
    An answer counts as goodput if it came within the deadline and, if given, `slo_ms`.
    `pixels`: the images are raw pixels, not encoded files. `processes` 0: half the cores, at most
    8. Raises InvalidInput.
    """

    target: str
    model: str = ""
    api: Api = "packshot"
    rate: float | None = None
    arrivals: Arrivals = "poisson"
    concurrency: int = 16
    warmup_seconds: float = 1.0
    seconds: float = 10.0
    images_per_request: int = 1
    timeout_seconds: float = 30.0
    slo_ms: float | None = None
    pixels: bool = False
    processes: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ABOVE_ZERO:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise InvalidInput(f"{_flag(name)} is {value}; it must be above 0, and finite")
        for name in NOT_BELOW_ZERO:
            if not 0 <= (value := getattr(self, name)) < math.inf:
                raise InvalidInput(f"{_flag(name)} is {value}; it must be 0 or more, finite")
        if self.rate is not None and self.rate > MOST_RATE:
            raise InvalidInput(
                f"--rate is {self.rate:g}; it must be {MOST_RATE} or less: send from more machines"
            )
        if self.concurrency > MOST_IN_FLIGHT:
            raise InvalidInput(
                f"--concurrency is {self.concurrency}; it must be {MOST_IN_FLIGHT} or less: send "
                "from more machines"
            )
        if self.api == "open-inference" and not self.model:
            raise InvalidInput("the Open Inference Protocol knows no default model: give --model")

    @property
    def client_processes(self) -> int:
        """At most one a request in flight."""
        wanted = self.processes or min(MOST_PROCESSES, max(1, available_cores() // 2))
        return wanted if self.rate else min(wanted, self.concurrency)

    @property
    def in_time_seconds(self) -> float:
        """Within which an answer counts as goodput."""
        return min((self.slo_ms or math.inf) / 1000, self.timeout_seconds)

    @property
    def in_time_limit(self) -> str:
        """The same, for a reader."""
        deadline = " (the deadline)" if self.in_time_seconds == self.timeout_seconds else ""
        return f"{self.in_time_seconds * 1000:g} ms{deadline}"

    @property
    def images_per_second(self) -> float | None:
        """That are asked for; None in a closed loop."""
        return None if self.rate is None else self.rate * self.images_per_request

    @property
    def mode(self) -> str:
        """For a reader."""
        if self.rate:
            return f"{self.rate:g} requests/s ({self.arrivals})"
        return f"{self.concurrency} request{'s' * (self.concurrency > 1)} in flight"


def _flag(field: str) -> str:
    """Of `packshot load`, where most plans come from."""
    return f"--{field.removesuffix('_seconds').replace('_', '-')}"
