"""What a run was like."""

from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec

from packshot.intervals import Interval, mean_interval, nearest_rank, quantile_interval
from packshot.load.observed import ServerWindow
from packshot.load.tally import GIVEN_UP, NOT_SENT, SLICES, Tally, decoded
from packshot.load_plan import MOST_IN_FLIGHT, LoadPlan

PERCENTILES = (50.0, 90.0, 99.0, 99.9, 100.0)
BUSY_CORES = 0.85  # of the one core that a client process can use
LATE_MS = 5.0
LATE_SHARE = 0.1  # of the median answer
LATE_SHARE_OF_TAIL = 0.5  # of the slowest answer in a thousand
OVERLOAD = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
NEVER_SENT = (NOT_SENT, "TOO_MANY_IN_FLIGHT")


class Rate(msgspec.Struct, frozen=True, kw_only=True):
    """Images a second, with the 95 % interval by batch means over the slices of the window.

    `by_slice`: its equal parts, in order; empty in files of versions that did not keep them.
    """

    mean: float
    interval: Interval
    by_slice: list[float] = []


class Doubt(msgspec.Struct, frozen=True, kw_only=True):
    """Why something else than the server may be what was measured."""

    kind: Literal[
        "client_busy", "sent_late", "tail_late", "not_sent", "too_many", "failed",
        "cancelled", "silent", "unusable", "server_unseen", "stopped", "given_up",
    ]  # fmt: skip
    text: str
    size: float = 0.0
    """Of several of a kind the largest is the worst."""

    @property
    def of_client(self) -> bool:
        """Whether more would only find the client's own limit."""
        return self.kind in ("client_busy", "sent_late", "not_sent", "too_many")


class LoadReport(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests that were due while the window was open; `sent` counts all of them, also
    those that the errors NOT_SENT and TOO_MANY_IN_FLIGHT tell of.

    `images_in_all`: answered from the first request on, warm-up included; else the window counts.
    `answers`: images a second that were answered and could be used; `goodput`: those in time, which
    is within the deadline and the plan's SLO; `in_time`: requests of which that holds, whatever
    became of their images.
    Times in milliseconds: `latency_ms` of answered requests, from the moment when each was due;
    `refusal_ms` from being sent to being refused for overload; `lag_ms` the load tester's own
    delay: from due to sent or, in a closed loop, how late it was to wake.
    `latency_intervals_ms`: 95 %, by rank; from 0 where that lies before the fastest answer, without
    an upper end beyond the slowest, as the true percentile may be above them all.
    `latency_histogram`: HDR, in microseconds.
    `client_cores`: CPU seconds a second of each client process. `errors` counts requests by status,
    `image_errors` images in answered requests by reason; `error_details`: what the server said, the
    first time, of each status. `stopped_after`: seconds of the window that a run had when it was
    stopped before its time.
    """

    plan: LoadPlan
    sent: int
    answered: int
    in_time: int
    errors: dict[str, int]
    image_errors: dict[str, int]
    error_details: dict[str, str] = {}
    images_in_all: int
    answers: Rate
    goodput: Rate
    latency_ms: dict[str, float]
    latency_intervals_ms: dict[str, tuple[float, float | None]]
    refusal_ms: dict[str, float]
    lag_ms: dict[str, float]
    latency_histogram: str
    client_cores: list[float]
    server: ServerWindow | None
    doubts: tuple[Doubt, ...]
    stopped_after: float | None = None

    @property
    def images_per_second(self) -> float:
        return self.answers.mean

    @property
    def offered(self) -> str:
        """For a reader: the images of its rate or, in a closed loop, what was kept in flight."""
        rate = self.plan.images_per_second
        return f"{self.plan.concurrency} in flight" if rate is None else f"{rate:.1f}/s"

    @property
    def offered_images_per_second(self) -> float:
        """What was due, a second."""
        return self.sent * self.plan.images_per_request / (self.stopped_after or self.plan.seconds)

    @property
    def usable_share(self) -> float:
        """Of the images in answered requests."""
        images = self.answered * self.plan.images_per_request
        return 1 - sum(self.image_errors.values()) / images if images else 1.0

    @property
    def failed(self) -> int:
        """Requests that were not answered."""
        return sum(self.errors.values())

    @property
    def was_stopped(self) -> bool:
        """It ended before its time, or without the answers that were still out."""
        return self.stopped_after is not None or GIVEN_UP in self.errors

    @property
    def faults(self) -> dict[str, int]:
        """The part of `errors` that no overload explains."""
        return _faults(self.errors)


def report_of(
    plan: LoadPlan,
    tally: Tally,
    server: ServerWindow | Doubt | None,
    stopped_after: float | None = None,
) -> LoadReport:
    """`server`: its figures, or why there are none, if there should be."""
    seconds = stopped_after or plan.seconds
    latency_ms, lag_ms = _percentiles(tally.latency), _percentiles(tally.lag)
    client_cores = [used / seconds for used in tally.cpu_seconds]
    return LoadReport(
        plan=plan,
        sent=tally.sent,
        answered=tally.answered,
        in_time=tally.in_time,
        errors=tally.errors,
        image_errors=tally.image_errors,
        error_details=tally.error_details,
        images_in_all=tally.images_in_all,
        answers=_rate(tally.images_by_slice, seconds, plan.images_per_request),
        goodput=_rate(tally.in_time_by_slice, seconds, plan.images_per_request),
        latency_ms=latency_ms,
        latency_intervals_ms=_intervals(tally.latency),
        refusal_ms=_percentiles(tally.refusal),
        lag_ms=lag_ms,
        latency_histogram=tally.latency,
        client_cores=client_cores,
        server=None if isinstance(server, Doubt) else server,
        doubts=(
            *_doubts_of_client(plan, client_cores, latency_ms, lag_ms, tally),
            *_doubts_of_answers(plan, tally),
            *([server] if isinstance(server, Doubt) else []),
            *_stopped(plan, stopped_after, tally),
        ),
        stopped_after=stopped_after,
    )


def _faults(errors: Mapping[str, int]) -> dict[str, int]:
    return {k: v for k, v in errors.items() if k not in (*OVERLOAD, *NEVER_SENT, GIVEN_UP)}


def with_details(counted: Mapping[str, int], details: Mapping[str, str]) -> str:
    """How many of each kind, and what was said the first time."""
    return ", ".join(
        f"{count} {kind}{f' ({details[kind]})' if kind in details else ''}"
        for kind, count in counted.items()
    )


def _rate(by_slice: list[int], seconds: float, images_per_request: int) -> Rate:
    """However even the slices are: one answer more or less in the window is chance."""
    rates = [images / (seconds / SLICES) for images in by_slice]
    mean, (low, high) = sum(rates) / SLICES, mean_interval(rates)
    one = images_per_request / seconds
    return Rate(mean=mean, interval=(min(low, mean - one), max(high, mean + one)), by_slice=rates)


def _name(percentile: float) -> str:
    return f"p{percentile:g}"


def _percentiles(text: str) -> dict[str, float]:
    """In milliseconds; empty if there are none."""
    histogram = decoded(text)
    count = histogram.get_total_count()
    if not count:
        return {}
    # Asked for p itself it rounds the rank, often to one below, which fewer than p did not exceed.
    shares = {p: nearest_rank(p / 100, count) / count for p in PERCENTILES}
    return {_name(p): histogram.get_value_at_percentile(100 * shares[p]) / 1000 for p in shares}


def _intervals(text: str) -> dict[str, tuple[float, float | None]]:
    histogram = decoded(text)
    count = histogram.get_total_count()
    found = {}
    for percentile in PERCENTILES[:-1] if count else ():
        low, high = quantile_interval(percentile / 100, count)
        lowest, highest = (histogram.get_value_at_percentile(rank * 100) for rank in (low, high))
        found[_name(percentile)] = (  # as wide as the histogram's own steps at least
            histogram.get_lowest_equivalent_value(lowest) / 1000 if low else 0.0,
            histogram.get_highest_equivalent_value(highest) / 1000 if high < 1 else None,
        )
    return found


def _doubts_of_client(
    plan: LoadPlan,
    client_cores: list[float],
    latency_ms: Mapping[str, float],
    lag_ms: Mapping[str, float],
    tally: Tally,
) -> Iterator[Doubt]:
    if max(client_cores) > BUSY_CORES:
        yield Doubt(
            kind="client_busy",
            size=max(client_cores),
            text=f"a client process was busy for {max(client_cores):.0%} of the time: the client "
            "is the bottleneck; raise --processes, or send from more machines",
        )
    late, latest = lag_ms.get("p99", 0.0), lag_ms.get("p99.9", 0.0)
    if late > max(LATE_MS, LATE_SHARE * latency_ms.get("p50", 0.0)):
        yield Doubt(
            kind="sent_late",
            size=late,
            text=f"{_lateness(plan, late, 'a hundred')}: this machine is too busy to keep time; "
            "latencies include that delay",
        )
    elif latest > max(LATE_MS, LATE_SHARE_OF_TAIL * latency_ms.get("p99.9", 0.0)):
        yield Doubt(
            kind="tail_late",
            size=latest,
            text=f"{_lateness(plan, latest, 'a thousand')}: the slowest answers tell of this "
            "machine, not of the server",
        )
    if not_sent := tally.errors.get(NOT_SENT):
        yield Doubt(
            kind="not_sent",
            size=not_sent,
            text=f"{_were(not_sent, 'request')} never sent, as the deadline had passed by then: "
            f"{_why_not_sent(plan, lag_ms)}",
        )
    if too_many := tally.errors.get("TOO_MANY_IN_FLIGHT"):
        yield Doubt(
            kind="too_many",
            size=too_many,
            text=f"{_were(too_many, 'request')} never sent, as {MOST_IN_FLIGHT} were unanswered: "
            "the server does not keep up, and the rate was lower than asked for",
        )


def _why_not_sent(plan: LoadPlan, lag_ms: Mapping[str, float]) -> str:
    if not lag_ms or lag_ms["p99"] > LATE_MS:
        return "the client cannot offer this rate"
    return (
        f"{plan.timeout_seconds * 1000:g} ms are less than the client's own delay, which is up to "
        f"{lag_ms['p100']:.1f} ms; give it a longer --timeout"
    )


def _doubts_of_answers(plan: LoadPlan, tally: Tally) -> Iterator[Doubt]:
    faults = _faults(tally.errors)
    cancelled = faults.pop("CANCELLED", 0)
    if faults:
        yield Doubt(
            kind="failed",
            size=(failed := sum(faults.values())),
            text=f"{_counted(failed, 'request')} failed, which is no overload: "
            f"{with_details(faults, tally.error_details)}",
        )
    if cancelled:  # the load tester itself cancels nothing
        yield Doubt(
            kind="cancelled",
            size=cancelled,
            text=f"{_were(cancelled, 'request')} ended as CANCELLED, but not by this client: gRPC "
            "does so while a thousand wait for a server to take them, and as a server stops",
        )
    expired = tally.errors.get("DEADLINE_EXCEEDED", 0)
    if expired and not tally.answered and "RESOURCE_EXHAUSTED" not in tally.errors:
        yield Doubt(
            kind="silent",
            size=expired,
            text=f"no request was answered within its deadline of {plan.timeout_seconds:g} s, and "
            "none was refused: the server hangs, or takes longer than that for so much",
        )
    if unusable := sum(tally.image_errors.values()):
        reasons = ", ".join(tally.image_errors)
        yield Doubt(
            kind="unusable",
            size=unusable,
            text=f"{_counted(unusable, 'image')} of those sent cannot be used ({reasons}): rates "
            "of images leave them out, and they cost the server less",
        )


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _were(count: int, noun: str) -> str:
    return f"{_counted(count, noun)} {'was' if count == 1 else 'were'}"


def _lateness(plan: LoadPlan, ms: float, of: str) -> str:
    if plan.rate:
        return f"one request in {of} was sent {ms:.0f} ms or more after it was due"
    return f"at one moment in {of} the client was {ms:.0f} ms or more late to go on"


def _stopped(plan: LoadPlan, after: float | None, tally: Tally) -> Iterator[Doubt]:
    if after is not None:
        text = f"it was stopped after {after:.1f} s of {plan.seconds:g} s"
        yield Doubt(kind="stopped", text=text)
    if given_up := tally.errors.get(GIVEN_UP):
        yield Doubt(
            kind="given_up",
            size=given_up,
            text=f"{_were(given_up, 'request')} given up before the deadline, as it was "
            "interrupted: latencies leave them out, which may have been the slowest",
        )
