"""What a load test found, as text for a terminal."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from packshot.load.caution import cut_short, doubts_told, shortages
from packshot.load.headline import within_slo
from packshot.load.observed import ServerWindow
from packshot.load.report import LoadReport, with_details
from packshot.load.results import Results
from packshot.load.sweep import Sweep
from packshot.tables import table

HEAD = ("OFFERED", "IMAGES/S", "IN TIME", "P50 MS", "P99 MS", "P99.9 MS", "NOT ANSWERED", "LAG P99")


def results_text(results: Results) -> str:
    """A few lines of a run, or a table of a sweep; what to beware of last."""
    served = results.served
    head = f"{served.model} version {served.version}, engine {served.engine}"
    if results.sweep is None:
        return "\n".join([head, *map(report_text, results.runs), *_notes(results.runs)])
    return "\n".join([head, *_sweep_lines(results.sweep)])


def _sweep_lines(sweep: Sweep) -> list[str]:
    rows = [_row(run) for run in sweep.runs]
    lines = [table([HEAD, *rows]), f"not answered: {errors_text(*sweep.runs)}"]
    if sweep.saturation:
        lines.append(f"saturates at {sweep.saturation:.1f} images/s")
    if sweep.kept_up_with is not None:
        lines.append(f"keeps up with {sweep.kept_up_with:.1f} images/s (95 % answered)")
    lines += [f"{rate} {told}" for rate, told in within_slo(sweep)]
    return [
        *lines,
        *(f"WARNING {text}" for text in (*cut_short(sweep), *doubts_told(sweep.runs))),
        *_notes(sweep.runs),
    ]


def _notes(runs: Sequence[LoadReport]) -> Iterator[str]:
    return (f"note: {text}" for text in shortages(runs))


def _row(report: LoadReport) -> tuple[str, ...]:
    times = (report.latency_ms.get(name) for name in ("p50", "p99", "p99.9"))
    return (
        report.offered,
        f"{report.answers.mean:.1f}",
        f"{report.goodput.mean:.1f}",
        *("-" if time is None else f"{time:.1f}" for time in times),
        f"{report.failed} of {report.sent}",
        f"{report.lag_ms.get('p99', 0):.1f}",
    )


def report_text(report: LoadReport) -> str:
    """A few lines of one run, without what it served."""
    plan = report.plan
    low, high = report.answers.interval
    lines = [
        f"{plan.mode} of {plan.images_per_request} image(s) for {plan.seconds:g} s "
        f"to {plan.target}",
        f"  answered    {report.answered} of {report.sent} requests; {report.answers.mean:.1f} "
        f"images/s ({max(0.0, low):.1f} to {high:.1f})",
    ]
    if plan.slo_ms is not None:
        lines.append(
            f"  goodput     {report.goodput.mean:.1f} images/s within {plan.in_time_limit}"
        )
    lines += [
        f"  latency ms  {_listed(report.latency_ms) or 'no answer'}",
        f"  errors      {errors_text(report)}",
        f"  client      {' '.join(f'{cores:.2f}' for cores in report.client_cores)} cores, "
        f"{report.lag_ms.get('p99', 0):.1f} ms late at p99",
    ]
    if report.server is not None:
        lines.append(f"  server      {_server_text(report.server)}")
    return "\n".join([*lines, *(f"  WARNING     {doubt.text}" for doubt in report.doubts)])


def errors_text(*reports: LoadReport) -> str:
    """How many of all by status or reason, with what the server said the first time."""
    counted: Counter[str] = Counter()
    details: dict[str, str] = {}
    for one in reports:
        counted.update(one.errors)
        counted.update({f"image(s) {k}": v for k, v in one.image_errors.items()})
        details = {**one.error_details, **details}
    return with_details(counted, details) or "none"


def _listed(milliseconds: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {ms:.1f}" for name, ms in milliseconds.items())


def _server_text(server: ServerWindow) -> str:
    stages = "  ".join(f"{name} {times.mean_ms:.1f}" for name, times in server.stages.items())
    batch = f"batches of {server.batch_images_mean:.1f}; " if server.batch_images_mean else ""
    return f"{server.cpu_cores:.2f} cores, {server.resident_mb:.0f} MB; {batch}mean ms: {stages}"
