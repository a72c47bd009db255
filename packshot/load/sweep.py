"""Many rates, one after the other: where the server saturates, and what it does within an SLO."""

import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from typing import Any

import msgspec

from packshot.intervals import Interval
from packshot.load.arrivals import seed_of_run
from packshot.load.report import LoadReport, with_details
from packshot.load.senders import Senders
from packshot.load_plan import MOST_RATE, LoadPlan

LADDER = (0.25, 0.5, 0.7, 0.85, 1.0, 1.25, 1.5, 2.0)
"""Rates, in parts of what the closed loop reached."""

IN_TIME_SHARE = 0.99  # of the requests that were sent: refused and failed ones miss the SLO too
MOST_DOUBLINGS = 6  # of the highest, while the server keeps up with it: a long way saturates nobody
KEPT_UP_SHARE = 0.95  # of what was offered is answered
CLOSE_ENOUGH = 1.05  # the lowest rate that fails over the highest that passes
MOST_BISECTIONS = 6
FEWEST_REQUESTS = 100  # of fewer, a single one that is late would decide


class Found(msgspec.Struct, frozen=True, kw_only=True):
    """What a sweep tells, for programs: the properties of `Sweep`, None for no upper end too."""

    saturation: float
    saturation_interval: Interval
    kept_up_with: float | None
    not_kept_up_with: float | None
    within_slo: float | None
    beyond_slo: float | None


class Sweep(msgspec.Struct, frozen=True, kw_only=True):
    """`alone`: one request in flight; `closed`: the plan's concurrency; `points`: open loops, by
    rate. All rates in images a second, as they were asked for. Each of the points has drawn its
    arrivals with a seed of its own, which is in its plan. `cut_short`: why some are missing, if so.
    """

    alone: LoadReport
    closed: LoadReport
    points: tuple[LoadReport, ...]
    cut_short: str | None = None

    def found(self) -> Found:
        return Found(
            saturation=self.saturation,
            saturation_interval=self.saturation_interval,
            kept_up_with=self.kept_up_with,
            not_kept_up_with=_finite(self.not_kept_up_with),
            within_slo=self.within_slo,
            beyond_slo=None if self.closed.plan.slo_ms is None else _finite(self.beyond_slo),
        )

    @property
    def runs(self) -> tuple[LoadReport, ...]:
        return (self.alone, self.closed, *self.points)

    @property
    def saturation(self) -> float:
        """The most that was answered in a second, at whatever rate."""
        return self._most_answered.answers.mean

    @property
    def saturation_interval(self) -> Interval:
        """95 %, of that rate's answers."""
        return self._most_answered.answers.interval

    @property
    def _most_answered(self) -> LoadReport:
        return max((self.closed, *self.points), key=lambda one: one.answers.mean)

    @property
    def kept_up_with(self) -> float | None:
        """The highest rate of which 95 % were answered; None if there is none."""
        return _highest(one for one in self.points if _kept_up(one))

    @property
    def not_kept_up_with(self) -> float:
        """The lowest rate above that; infinity if there is none."""
        kept = self.kept_up_with or 0.0
        return _lowest(one for one in self.points if images_asked_for(one) > kept)

    @property
    def within_slo(self) -> float | None:
        """The highest rate that was kept up with, and of which 99 % of the requests were answered
        within the SLO, below all at which that failed; None if there is none, or no SLO."""
        if self.closed.plan.slo_ms is None:
            return None
        return _highest(_passing(self.points))

    @property
    def beyond_slo(self) -> float:
        """The lowest rate at which that failed; infinity if there is none."""
        return _lowest(one for one in self.points if _failed(one))


async def sweep(senders: Senders, plan: LoadPlan, tell: Callable[[LoadReport], None]) -> Sweep:
    """Two closed loops, a ladder of open ones, and between its steps a bisection to the SLO.

    It is cut short by a run that tells nothing of the server. What was told until an error ends it
    makes a Sweep too: see `sweep_of`.
    """
    told: list[LoadReport] = []

    async def run(**changes: Any) -> LoadReport:
        seed = seed_of_run(plan.seed, len(told)) if changes["rate"] else plan.seed
        report = await senders.run(msgspec.structs.replace(plan, seed=seed, **changes))
        told.append(report)
        tell(report)
        if len(told) > 1 and (why := _in_vain(report, told[:-1])):
            raise _CutShort(why)
        return report

    try:
        await _all_runs(plan, run)
    except _CutShort as why:
        return sweep_of(told, str(why))
    return sweep_of(told)


class _CutShort(Exception):
    """Further runs would tell no more."""


async def _all_runs(plan: LoadPlan, run: Callable[..., Awaitable[LoadReport]]) -> None:
    """`run` takes what is other than in the plan."""
    await run(rate=None, concurrency=1)
    closed = await run(rate=None)
    peak = closed.answers.mean / plan.images_per_request
    rates = [peak * share for share in LADDER]
    points = [await run(rate=rate) for rate in rates if rate <= MOST_RATE]
    for _ in range(MOST_DOUBLINGS):
        # Beyond what the client can send, its own limit would be found.
        if not points or not _kept_up(points[-1]) or _client_ended(points[-1]):
            break
        if 2 * _rate(points[-1]) > MOST_RATE:
            break
        points.append(await run(rate=2 * _rate(points[-1])))
    if plan.slo_ms is not None:
        for point in doubtful(points):
            points[points.index(point)] = await run(rate=_rate(point))
        for _ in range(MOST_BISECTIONS):
            if (rate := next_rate(points)) is None:
                break
            points.append(await run(rate=rate))


def _in_vain(report: LoadReport, before: Sequence[LoadReport]) -> str | None:
    """Why it tells nothing of the server; None if it does. Rates may be too high: all refused."""
    closed = report.plan.rate is None
    told = f"no request was answered: {with_details(report.errors, report.error_details)}"
    if not report.answered and (report.faults or (closed and report.errors)):
        return f"at {report.plan.mode} {told}"  # of every loop that is silent too
    if _fell_silent(report, before):
        return (
            f"at {report.plan.mode}, no more than was answered before, {told}; the server hangs, "
            "or is busy with what expired at higher rates: then give it a longer --timeout"
        )
    if closed and not report.usable_share:
        return f"no image that was sent can be used: {', '.join(report.image_errors)}"
    if closed and not report.answers.mean:
        return "no answer came while the window was open: give it more --seconds"
    return None


def _fell_silent(report: LoadReport, before: Sequence[LoadReport]) -> bool:
    """At a rate that the server has answered before. A higher one may be overload, where nothing
    else is wrong: of a server that refuses none and answers in turn, all come too late then.
    """
    silent = any(doubt.kind == "silent" for doubt in report.doubts)
    return silent and images_asked_for(report) <= max(one.answers.mean for one in before)


def sweep_of(told: Sequence[LoadReport], cut_short: str | None = None) -> Sweep:
    """Of reports in the order in which they were told, at least the two closed loops'.

    Of a rate that was measured twice the second one counts.
    """
    alone, closed, *points = told
    by_rate = {_rate(one): one for one in points}
    return Sweep(
        alone=alone,
        closed=closed,
        points=tuple(by_rate[rate] for rate in sorted(by_rate)),
        cut_short=cut_short,
    )


def images_asked_for(point: LoadReport) -> float:
    """A second, of an open loop."""
    rate = point.plan.images_per_second
    assert rate is not None
    return rate


def doubtful(points: Sequence[LoadReport]) -> list[LoadReport]:
    """Rates that failed though a higher one met the SLO: they fail only if they do so twice."""
    passing = max((_rate(one) for one in points if _met(one)), default=0.0)
    return [one for one in points if _failed(one) and _rate(one) < passing]


def next_rate(points: Sequence[LoadReport]) -> float | None:
    """Between the highest rate that meets the SLO and the lowest that does not; None when done.

    Never one that was measured: of enough requests each has either met it or failed.
    """
    failing = min((_rate(one) for one in points if _failed(one)), default=None)
    if failing is None:
        return None  # all met it: there is nothing to look for between them
    passing = max(map(_rate, _passing(points)), default=0.0)
    rate = (passing + failing) / 2
    too_few = not _enough(rate, points[0].plan)
    return None if too_few or failing <= passing * CLOSE_ENOUGH else rate


def _passing(points: Sequence[LoadReport]) -> Iterator[LoadReport]:
    """Above a rate that failed one may pass by chance: that does not count."""
    failing = min((_rate(one) for one in points if _failed(one)), default=float("inf"))
    return (one for one in points if _met(one) and _rate(one) < failing)


def _met(report: LoadReport) -> bool:
    """Nothing late is not enough: what waits may be more and more, though less than the SLO yet."""
    in_time = report.in_time >= IN_TIME_SHARE * report.sent > 0
    return in_time and (_kept_up(report) or not report.usable_share)  # unknown of no usable image


def _failed(report: LoadReport) -> bool:
    return not _met(report) and _enough(_rate(report), report.plan)


def _enough(rate: float, plan: LoadPlan) -> bool:
    return rate * plan.seconds >= FEWEST_REQUESTS


def _kept_up(report: LoadReport) -> bool:
    """With what was due."""
    usable = report.offered_images_per_second * report.usable_share
    return report.answers.mean >= KEPT_UP_SHARE * usable > 0


def _client_ended(report: LoadReport) -> bool:
    return any(doubt.of_client for doubt in report.doubts)


def _highest(points: Iterable[LoadReport]) -> float | None:
    return max(map(images_asked_for, points), default=None)


def _lowest(points: Iterable[LoadReport]) -> float:
    return min(map(images_asked_for, points), default=math.inf)


def _finite(rate: float) -> float | None:
    return None if math.isinf(rate) else rate


def _rate(report: LoadReport) -> float:
    """Requests a second."""
    assert report.plan.rate is not None
    return report.plan.rate
