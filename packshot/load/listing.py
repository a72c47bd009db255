"""The tables of load.html."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from packshot.load.caution import interval_text, latency_interval, latency_text
from packshot.load.observed import ServerWindow
from packshot.load.report import LoadReport
from packshot.load.results import Results
from packshot.load.text import errors_text

MISSING = "\N{EN DASH}"
RATES_HEAD = (
    "offered", "answered, images/s", "in time", "p50 ms", "p99 ms", "p99.9 ms", "not answered",
    "client late, p99 ms", "client cores", "server cores", "batch", "server MB",
)  # fmt: skip


def rates_table(runs: Iterable[LoadReport]) -> str:
    return _table(RATES_HEAD, [_rate_row(run) for run in runs])


def _rate_row(run: LoadReport) -> list[str]:
    return [
        run.offered,
        f"{run.answers.mean:.1f}\n{interval_text(run.answers.interval)}",
        f"{run.goodput.mean:.1f}",
        *("\n".join(latency_text(run, name) or [MISSING]) for name in ("p50", "p99", "p99.9")),
        f"{run.failed} of {run.sent}",
        _number(run.lag_ms.get("p99")),
        f"{sum(run.client_cores):.2f}",
        *_server_cells(run.server),
    ]


def _server_cells(server: ServerWindow | None) -> tuple[str, str, str]:
    if server is None:
        return (MISSING, MISSING, MISSING)
    batch = _number(server.batch_images_mean)
    return (f"{server.cpu_cores:.2f}", batch, f"{server.resident_mb:.0f}")


def percentiles_table(run: LoadReport) -> str:
    """Answered, refused for overload, and the load tester's own delay."""
    kinds = {
        "answered, from due": run.latency_ms,
        "refused for overload, from sent": run.refusal_ms,
        "the client, late": run.lag_ms,
    }
    names = list(run.lag_ms)
    intervals = {name: latency_interval(run, name) for name in names}
    rows = [
        [kind, *(_number(times.get(name)) for name in names)]
        for kind, times in kinds.items()
        if times
    ]
    told = [interval_text(each) if each else MISSING for each in intervals.values()]
    rows[1:1] = [["its 95 % interval", *told]] if run.latency_ms else []
    return _table(("ms", *names), rows)


def stages_table(server: ServerWindow) -> str:
    rows = [
        [stage, str(one.count), f"{one.mean_ms:.1f}", f"{one.p50_ms:.1f}", f"{one.p99_ms:.1f}"]
        for stage, one in server.stages.items()
    ]
    return _table(("server's stage", "count", "mean ms", "p50 ms", "p99 ms"), rows)


def machines_table(run: LoadReport) -> str:
    """CPU and memory of both sides."""
    each = ", ".join(f"{cores:.2f}" for cores in run.client_cores)
    facts = {"client, cores of each process": each}
    if (server := run.server) is not None:
        facts |= {
            "server, cores": f"{server.cpu_cores:.2f}",
            "server, CPU ms an image": _number(server.cpu_ms_an_image),
            "server, memory at the end": f"{server.resident_mb:.0f} MB",
            "server, saturation by its own account at the end": f"{server.saturation:.0%}",
        }
    return _facts(facts)


def errors_table(runs: Sequence[LoadReport]) -> str:
    """Empty where nothing failed. Reasons are the server's own, where it told."""
    rows = []
    for run in runs:
        server = run.server
        reasons = {**server.refused, **server.dropped} if server else {}
        if run.errors or run.image_errors or reasons:
            told = ", ".join(f"{count} {reason}" for reason, count in reasons.items())
            rows.append([run.offered, errors_text(run), told or MISSING])
    head = ("offered", "not answered, by status", "server's reasons to refuse or drop")
    return _table(head, rows, "rows words") if rows else ""


def conditions_table(results: Results, run: LoadReport) -> str:
    """What was measured. `run`: whose plan is told."""
    plan, served, images = run.plan, results.served, results.images
    asked = f"{plan.concurrency} requests kept in flight"
    if results.sweep is not None:
        asked = f"a sweep: 1 and {plan.concurrency} in flight, then rates ({plan.arrivals})"
    elif plan.rate is not None:
        asked = plan.mode
    slo = "none" if plan.slo_ms is None else f"{plan.slo_ms:g} ms"
    return _facts(
        {
            "model": f"{served.model} version {served.version}",
            "engine": served.engine,
            "server": f"{plan.target}, by the {plan.api} API",
            "load": asked,
            "each": f"{plan.seconds:g} s, after {plan.warmup_seconds:g} s that do not count",
            "requests": f"{plan.images_per_request} image(s), deadline {plan.timeout_seconds:g} s",
            "SLO": slo,
            "images": f"{images.count} of {images.mean_bytes / 1000:.1f} kB in the mean, sent in "
            f"turn{' as raw pixels' if plan.pixels else ''}: {images.source}",
            "client": f"packshot {results.packshot}, {results.client_processes} process(es), seed "
            f"{plan.seed}",
            "ended": results.created,
        }
    )


def _facts(facts: Mapping[str, str]) -> str:
    return _table((), list(facts.items()), "rows words")


def _number(value: float | None) -> str:
    return MISSING if value is None else f"{value:.1f}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], css: str = "rows") -> str:
    first = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table class="{css}">{f"<tr>{first}</tr>" if head else ""}{body}'
        "</table></div>"
    )


def _cell(text: str) -> str:
    """A second line is smaller."""
    value, *aside = map(escape, text.split("\n"))
    return f"<td>{value}{''.join(f'<br><small>{line}</small>' for line in aside)}</td>"
