"""Charts of a sweep, over the rate that was offered."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from packshot.chart import (
    COLOURS,
    Frame,
    Point,
    Scale,
    area,
    dashed,
    dot,
    even_ticks,
    legend,
    linear,
    log_ticks,
    polyline,
    side_by_side,
)
from packshot.intervals import Interval
from packshot.load.caution import latency_interval
from packshot.load.observed import STAGES, ServerWindow
from packshot.load.report import LATE_MS, LoadReport
from packshot.load.sweep import Sweep, images_asked_for

PERCENTILES = ("p50", "p99", "p99.9")
WITH_INTERVAL = ("p50", "p99")  # that of p99.9 would cover the picture
COLUMN = 62  # pixels of a name in the legend


Value = Callable[[LoadReport], float | None]


class Line(NamedTuple):
    """By rate; a rate without a value has no point."""

    name: str
    points: list[Point]
    intervals: list[tuple[float, Interval]] = []  # noqa: RUF012  # never changed


def sweep_charts(sweep: Sweep) -> str:
    points = sorted(sweep.points, key=images_asked_for)
    if not points:
        return "<p>Nothing came of the first loops: there was no rate to try.</p>"
    slo_ms = sweep.closed.plan.slo_ms
    charts = [
        latency_chart(points, slo_ms, sweep.within_slo),
        throughput_chart(points),
        missed_chart(points),
        cores_chart(points),
        lag_chart(points),
    ]
    if any(one.server for one in points):
        charts[3:3] = [stages_chart(points), batches_chart(points)]
        charts.append(memory_chart(points))
    return side_by_side(charts)


def latency_chart(
    points: Sequence[LoadReport], slo_ms: float | None, within_slo: float | None
) -> str:
    lines = []
    for name in PERCENTILES:
        times = _line(name, points, _latency(name))
        shown = points if name in WITH_INTERVAL else ()
        found = [(images_asked_for(one), latency_interval(one, name)) for one in shown]
        lines.append(times._replace(intervals=[(x, it) for x, it in found if it is not None]))
    values = [y for line in lines for _, y in line.points] + ([slo_ms] if slo_ms else [])
    ticks = log_ticks(min(values, default=1.0), max(values, default=10.0))
    frame = _frame("latency, ms", points, ticks, scale=math.log10)
    marks = []
    if slo_ms is not None:
        marks.append(
            dashed(frame, (frame.x[1], slo_ms), (frame.x[0], slo_ms), f"SLO {slo_ms:g} ms")
        )
    if within_slo is not None:
        ends = (within_slo, frame.y[0]), (within_slo, frame.y[1])
        marks.append(dashed(frame, *ends, f"{within_slo:.4g}/s within the SLO"))
    return _drawn(frame, lines, marks, "ms")


def throughput_chart(points: Sequence[LoadReport]) -> str:
    answered = _line("answered", points, lambda one: one.answers.mean)
    answered = answered._replace(
        intervals=[(images_asked_for(one), one.answers.interval) for one in points]
    )
    lines = [answered, _line("in time", points, lambda one: one.goodput.mean)]
    highest = max(one.answers.interval[1] for one in points)
    frame = _frame("images/s", points, even_ticks(max(highest, images_asked_for(points[-1]))))
    all_of = min(frame.x[1], frame.y[1])
    marks = [dashed(frame, (0, 0), (all_of, all_of), "all that was offered")]
    return _drawn(frame, lines, marks, "images/s")


def missed_chart(points: Sequence[LoadReport]) -> str:
    """Shares of the requests that were sent."""

    def share(count: Callable[[LoadReport], int]) -> Value:
        return lambda one: count(one) / one.sent if one.sent else None

    lines = [
        _line("not answered", points, share(lambda one: one.failed)),
        _line("too late", points, share(lambda one: one.answered - one.in_time)),
    ]
    frame = _frame("share of the requests", points, (0.0, 0.25, 0.5, 0.75, 1.0), "{:.0%}".format)
    return _drawn(frame, lines, [], "of the requests", column=84)


def stages_chart(points: Sequence[LoadReport]) -> str:
    """Infer is that of a batch, the others of an image."""
    lines = [_line(stage, points, _of_server(_mean_ms(stage))) for stage in STAGES]
    return _from_zero("server: mean ms", points, lines, "ms", column=44)


def batches_chart(points: Sequence[LoadReport]) -> str:
    lines = [_line("mean", points, _of_server(lambda server: server.batch_images_mean))]
    return _from_zero("server: images in a batch", points, lines, "images")


def cores_chart(points: Sequence[LoadReport]) -> str:
    client = _line("client", points, lambda one: sum(one.client_cores))
    server = _line("server", points, _of_server(lambda server: server.cpu_cores))
    if not server.points:
        return _from_zero("client: CPU, cores", points, [client], "cores", least=1.0)
    return _from_zero("CPU, cores", points, [client, server], "cores", least=1.0)


def memory_chart(points: Sequence[LoadReport]) -> str:
    lines = [_line("resident", points, _of_server(lambda server: server.resident_mb))]
    return _from_zero("server: memory, MB", points, lines, "MB")


def lag_chart(points: Sequence[LoadReport]) -> str:
    """The load tester's own delay, which is in the latencies."""
    lines = [_line(name, points, _lag(name)) for name in ("p50", "p99")]
    return _from_zero("client: late by, ms", points, lines, "ms", least=LATE_MS)


def _latency(name: str) -> Value:
    return lambda one: one.latency_ms.get(name)


def _lag(name: str) -> Value:
    return lambda one: one.lag_ms.get(name)


def _of_server(value: Callable[[ServerWindow], float | None]) -> Value:
    return lambda one: None if one.server is None else value(one.server)


def _mean_ms(stage: str) -> Callable[[ServerWindow], float | None]:
    return lambda server: server.stages[stage].mean_ms if stage in server.stages else None


def _line(name: str, points: Sequence[LoadReport], value: Value) -> Line:
    found = [(images_asked_for(one), value(one)) for one in points]
    return Line(name, [(x, y) for x, y in found if y is not None])


def _frame(
    title: str,
    points: Sequence[LoadReport],
    ticks: tuple[float, ...],
    tick: Callable[[float], str] = "{:g}".format,
    scale: Scale = linear,
) -> Frame:
    rates = even_ticks(images_asked_for(points[-1]))
    return Frame(
        title=title,
        x=(rates[0], rates[-1]),
        y=(ticks[0], ticks[-1]),
        x_label="offered, images/s",
        tick=tick,
        x_tick="{:g}".format,
        x_ticks=rates,
        y_ticks=ticks,
        y_scale=scale,
    )


def _from_zero(
    title: str,
    points: Sequence[LoadReport],
    lines: Sequence[Line],
    unit: str,
    *,
    column: int = COLUMN,
    least: float = 0.0,
) -> str:
    """`least`: of what the axis shows, so that next to nothing looks like that."""
    highest = max((y for line in lines for _, y in line.points), default=1.0)
    return _drawn(_frame(title, points, even_ticks(max(highest, least))), lines, [], unit, column)


def _drawn(
    frame: Frame, lines: Sequence[Line], marks: Sequence[str], unit: str, column: int = COLUMN
) -> str:
    """Intervals and marks lie below the lines, so that they hide nothing that was measured."""
    drawn: list[str] = []
    coloured = list(zip(lines, COLOURS, strict=False))
    for line, colour in coloured:
        lower = [(x, low) for x, (low, _) in line.intervals]
        upper = [(x, high) for x, (_, high) in line.intervals]
        drawn += [area(frame, lower + upper[::-1], colour)] if lower else []
    drawn += marks
    for line, colour in coloured:
        drawn.append(polyline(frame, line.points, colour) if line.points else "")
        drawn += [
            dot(frame, (x, y), colour, f"{line.name} at {x:.1f} images/s: {y:.3g} {unit}")
            for x, y in line.points
        ]
    names = [line.name for line in lines] if len(lines) > 1 else []
    return frame.drawn([*drawn, *legend(names, column)])
