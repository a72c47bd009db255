"""How far a result can be trusted: the client's doubts, and what too few requests cannot tell."""

import math
from collections.abc import Iterator, Sequence

from packshot.intervals import Interval
from packshot.load.report import LoadReport
from packshot.load.sweep import FEWEST_REQUESTS, Sweep

TAILS = {"p99": 100, "p99.9": 1000}
"""Of fewer answers the percentile is the slowest of all, or the one before it."""


def cut_short(sweep: Sweep | None) -> Iterator[str]:
    if sweep is not None and sweep.cut_short is not None:
        yield f"the sweep did not come to its end, rates are missing: {sweep.cut_short}"


def doubts_told(runs: Sequence[LoadReport]) -> Iterator[str]:
    """Each kind once, as the run tells it that has the worst."""
    found = [(run, doubt) for run in runs for doubt in run.doubts]
    for kind in dict.fromkeys(doubt.kind for _, doubt in found):
        run, doubt = max(
            (each for each in found if each[1].kind == kind), key=lambda each: each[1].size
        )
        others = sum(any(one.kind == kind for one in each.doubts) for each in runs) - 1
        more = f" (and at {others} other rate{'s' * (others > 1)})" if others else ""
        yield f"at {run.plan.mode}: {doubt.text}{more}"


def shortages(runs: Sequence[LoadReport]) -> Iterator[str]:
    few = [run for run in runs if run.sent < FEWEST_REQUESTS]
    if few:
        yield (
            f"fewer than {FEWEST_REQUESTS} requests were sent{_in(few, runs)}: a single slow one "
            "decides there whether 99 % met an SLO; give it more --seconds"
        )
    short = {name: [run for run in runs if run.answered < of] for name, of in TAILS.items()}
    told = [
        f"{name}{_in(some, runs)} (fewer than {TAILS[name]})"
        for name, some in short.items()
        if some
    ]
    if told:
        yield (
            f"too few answers to tell {' and '.join(told)}: each is one of the two slowest "
            "answers, and the true one may be far above; give it more --seconds"
        )


def _in(some: Sequence[LoadReport], runs: Sequence[LoadReport]) -> str:
    return "" if len(runs) == 1 else f" in {len(some)} of {len(runs)} runs"


def latency_interval(report: LoadReport, name: str) -> Interval | None:
    """Of a percentile such as "p99", in ms; to infinity where it has no upper end."""
    found = report.latency_intervals_ms.get(name)
    if found is None:
        return None
    low, high = found
    return (low, math.inf if high is None else high)


def latency_text(report: LoadReport, name: str) -> tuple[str, str] | None:
    """A percentile such as "p99", in ms, and its interval; None if nothing was answered."""
    ms, interval = report.latency_ms.get(name), latency_interval(report, name)
    if ms is None or interval is None:
        return None
    return f"{ms:.1f}", interval_text(interval)


def interval_text(interval: Interval) -> str:
    """Of something that is never below 0."""
    low, high = interval
    if high == math.inf:
        return f"{low:.1f} or more"
    return f"{max(0.0, low):.1f} to {high:.1f}"
