"""What a load test found, in a few figures."""

from collections.abc import Iterator

from packshot.load.caution import interval_text, latency_text
from packshot.load.report import LoadReport
from packshot.load.results import Results
from packshot.load.sweep import IN_TIME_SHARE, KEPT_UP_SHARE, Sweep, doubtful

Figure = tuple[str, str]
"""A value, and what it is."""


def headline(results: Results) -> list[Figure]:
    if results.sweep is not None:
        return list(_of_sweep(results.sweep))
    return [] if results.run is None else list(_of_run(results.run))


def _of_sweep(sweep: Sweep) -> Iterator[Figure]:
    yield (
        f"{sweep.saturation:.1f} images/s" if sweep.saturation else "no answer",
        "saturation: the most that was answered, at whatever rate",
    )
    yield from within_slo(sweep)
    kept = sweep.kept_up_with
    told = f"{KEPT_UP_SHARE:.0%} of the images answered"
    if kept is None:
        yield "no rate tried", f"had {told}"
    else:
        yield f"{kept:.1f} images/s", f"the highest rate with {told}"
    yield _time(sweep.alone, "p50", "one request alone: half take no longer")


def within_slo(sweep: Sweep) -> Iterator[Figure]:
    """Nothing without an SLO. A rate above one that failed may have met it: that is told too."""
    plan = sweep.closed.plan
    if plan.slo_ms is None:
        return
    told = f"had {IN_TIME_SHARE:.0%} of the requests within {plan.in_time_limit}"
    failed, higher_passed = f"{sweep.beyond_slo:.1f}/s", bool(doubtful(sweep.points))
    if higher_passed:
        told += f"; {failed} failed, though a higher one passed"
    if sweep.within_slo is not None:
        yield f"up to {sweep.within_slo:.1f} images/s", f"all rates tried {told}"
    else:
        yield f"no rate up to {failed}" if higher_passed else "no rate tried", told


def _of_run(run: LoadReport) -> Iterator[Figure]:
    yield (
        f"{run.answers.mean:.1f} images/s",
        f"answered; 95 % interval {interval_text(run.answers.interval)}",
    )
    if run.plan.slo_ms is not None:
        yield (
            f"{run.goodput.mean:.1f} images/s",
            f"goodput, within {run.plan.in_time_limit}; {interval_text(run.goodput.interval)}",
        )
    yield _time(run, "p50", "p50 latency")
    yield _time(run, "p99", "p99 latency")
    share = run.failed / run.sent if run.sent else 0.0
    yield f"{share:.1%}", f"not answered: {run.failed} of {run.sent} requests"


def _time(run: LoadReport, name: str, told: str) -> Figure:
    if (found := latency_text(run, name)) is None:
        return "no answer", told
    ms, interval = found
    return f"{ms} ms", f"{told}; 95 % interval {interval}"
