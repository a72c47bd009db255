"""Two results side by side: what differs between the tests, and what in what they found."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, NamedTuple

import msgspec

from packshot.errors import InvalidInput
from packshot.intervals import Interval, share_interval
from packshot.load.caution import cut_short, doubts_told, interval_text, latency_interval
from packshot.load.observed import ServerWindow
from packshot.load.report import LoadReport
from packshot.load.results import Results
from packshot.load.sweep import Sweep
from packshot.load_plan import LoadPlan
from packshot.tables import table

MISSING = "-"
HEAD = ("", "BEFORE", "AFTER", "CHANGE", "")
PERCENTILES = ("p50", "p90", "p99", "p99.9")
FOOT = (
    "Latencies are those of answered requests. Intervals hold 95 % and know the noise within a "
    "test, not that between two: repeat both before a small difference is believed. Where another "
    "rate or another number in flight was asked for, all figures are others for that alone, and "
    "where clearly more or fewer requests were answered, the latencies are: they have no verdict."
)
SWEEP_FOOT = (
    "Rates that were kept up with, or within the SLO, lie between the highest that passed and the "
    "lowest that failed, which is no 95 % interval, as chance has a part in each step of that "
    "search: they have no verdict; repeat both sweeps, or compare runs at one rate."
)
SERVER_ROWS: dict[str, Callable[[ServerWindow], float | None]] = {
    "server CPU, ms an image": lambda server: server.cpu_ms_an_image,
    "images in a batch": lambda server: server.batch_images_mean,
    "server memory, MB": lambda server: server.resident_mb,
}

Good = Literal["more", "less"]
Row = tuple[str, Good | None, "Measured | None"]
"""What it is, whether more or less of it is good (None: no verdict), and how much it is."""


class Measured(NamedTuple):
    """`interval`: 95 %, or where it was found between; it may have no upper end, or be missing."""

    value: float
    interval: Interval | None = None


def comparison_text(before: Results, after: Results) -> str:
    """For a terminal. Raises InvalidInput where a run is held against a sweep.

    "better" and "worse" are said only where there are two 95 % intervals, and these do not
    overlap. That is a cautious rule: of two equally noisy results it asks for 2.8 standard errors
    of the difference (which chance alone reaches once in 180 times), not the 2 of a test at 5 %.
    The caution is meant: each table asks many questions at once, answers that queued behind each
    other tell less than as many independent ones, and no interval knows the noise from one run to
    the next. What a search ended between is no such interval, and has no verdict.
    """
    pairs = _pairs(before, after)
    parts = [
        f"BEFORE  {_named(before)}",
        f"AFTER   {_named(after)}",
        *(f"WARNING different {line}" for line in _differences(before, after, *pairs[-1])),
        *(f"WARNING before, {text}" for text in _doubts(before)),
        *(f"WARNING after, {text}" for text in _doubts(after)),
    ]
    if before.sweep is not None and after.sweep is not None:
        parts += ["", _sweep_table(before.sweep, after.sweep), SWEEP_FOOT]
    for pair in pairs:
        parts += ["", _modes(*pair), _run_table(*pair)]
    return "\n".join([*parts, "", FOOT])


def _doubts(results: Results) -> Iterator[str]:
    yield from cut_short(results.sweep)
    yield from doubts_told(results.runs)


def _pairs(before: Results, after: Results) -> list[tuple[LoadReport, LoadReport]]:
    """Runs that can be compared; the last has the plan as it was asked for."""
    if before.run is not None and after.run is not None:
        return [(before.run, after.run)]
    if before.sweep is None or after.sweep is None:
        raise InvalidInput(
            "a single run and a sweep cannot be compared: measure both with --sweep, or both "
            "without"
        )
    return [(before.sweep.alone, after.sweep.alone), (before.sweep.closed, after.sweep.closed)]


def _modes(before: LoadReport, after: LoadReport) -> str:
    first, second = before.plan.mode, after.plan.mode
    return first if first == second else f"{first} -> {second}"


def _named(results: Results) -> str:
    served = results.served
    return f"{served.model} version {served.version}, engine {served.engine}, {results.created}"


def _differences(
    before: Results, after: Results, first: LoadReport, second: LoadReport
) -> Iterator[str]:
    """Between the two set-ups, field by field. Of the plans all but the model, as it may have been
    asked for without its name: the one that was served counts."""
    for name, old, new in [
        *_fields("", before.served, after.served),
        *_fields("images: ", before.images, after.images),
        *_fields("client's ", before.machine, after.machine),
        *(each for each in _fields("", first.plan, second.plan) if each[0] != "model"),
        ("version of packshot", before.packshot, after.packshot),
        ("client processes", before.client_processes, after.client_processes),
        ("server's figures", _observed(first), _observed(second)),
    ]:
        if old != new:
            yield f"{name}: {_shown(old)} -> {_shown(new)}"


def _fields(of: str, before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return ((f"{of}{name.replace('_', ' ')}", old[name], new[name]) for name in old)


def _observed(run: LoadReport) -> str:
    return "missing" if run.server is None else "there"


def _shown(value: Any) -> str:
    if value is None or value == "":
        return "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _side_by_side(before: Iterable[Row], after: Iterable[Row]) -> str:
    rows = [
        [name, _cell(first), _cell(second), _change(first, second), verdict(first, second, good)]
        for (name, good, first), (_, _, second) in zip(before, after, strict=True)
    ]
    return table([HEAD, *rows])


def _sweep_table(before: Sweep, after: Sweep) -> str:
    # The most of a few rates is less than that of all.
    good: Good | None = None if before.cut_short or after.cut_short else "more"
    return _side_by_side(_rates(before, good), _rates(after, good))


def _rates(sweep: Sweep, good: Good | None) -> Iterator[Row]:
    """`good`: of the saturation."""
    yield "saturation, images/s", good, Measured(sweep.saturation, sweep.saturation_interval)
    yield "kept up with, images/s", None, _between(sweep.kept_up_with, sweep.not_kept_up_with)
    yield "within the SLO, images/s", None, _between(sweep.within_slo, sweep.beyond_slo)


def _between(passed: float | None, failed: float) -> Measured | None:
    return None if passed is None else Measured(passed, (passed, failed))


def _run_table(before: LoadReport, after: LoadReport) -> str:
    # A server that was asked for more answers more, and later: that makes it no better or worse.
    same = _asked_for(before.plan) == _asked_for(after.plan)
    unanswered = verdict(_unanswered(before), _unanswered(after), "less")
    # Whoever refuses more answers the others sooner.
    alike = same and unanswered not in ("better", "worse")
    return _side_by_side(_measured(before, same, alike), _measured(after, same, alike))


def _asked_for(plan: LoadPlan) -> tuple[float | None, int | None]:
    """Images a second or, in a closed loop, requests in flight."""
    return plan.images_per_second, plan.concurrency if plan.rate is None else None


def _measured(run: LoadReport, same: bool, alike: bool) -> Iterator[Row]:
    """`same`: as much was asked for; `alike`: as many requests were answered, too."""
    more: Good | None = "more" if same else None
    less: Good | None = "less" if same else None
    yield "answers, images/s", more, Measured(run.answers.mean, run.answers.interval)
    yield "goodput, images/s", more, Measured(run.goodput.mean, run.goodput.interval)
    for name in PERCENTILES:
        ms = run.latency_ms.get(name)
        found = None if ms is None else Measured(ms, latency_interval(run, name))
        yield f"{name}, ms", less if alike else None, found
    yield "not answered, %", less, _unanswered(run)
    for name, value in SERVER_ROWS.items():
        yield name, "less", None if run.server is None else _plain(value(run.server))


def _unanswered(run: LoadReport) -> Measured | None:
    """In per cent of what was sent."""
    if not run.sent:
        return None
    low, high = share_interval(run.failed, run.sent)
    return Measured(100 * run.failed / run.sent, (100 * low, 100 * high))


def _plain(value: float | None) -> Measured | None:
    return None if value is None else Measured(value)


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return MISSING
    value = f"{measured.value:.1f}"
    return value if measured.interval is None else f"{value} ({interval_text(measured.interval)})"


def _change(before: Measured | None, after: Measured | None) -> str:
    if before is None or after is None or not before.value:
        return MISSING
    return f"{after.value / before.value - 1:+.1%}"


def verdict(before: Measured | None, after: Measured | None, good: Good | None) -> str:
    """Nothing where an interval is missing, or what is good."""
    if before is None or after is None or before.interval is None or after.interval is None:
        return ""
    if good is None:
        return ""
    (low, high), (new_low, new_high) = before.interval, after.interval
    if new_low > high:
        return "better" if good == "more" else "worse"
    if new_high < low:
        return "better" if good == "less" else "worse"
    return "no clear difference"
