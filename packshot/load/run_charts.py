"""Charts of one run: what became of its requests, their latencies, and what the server did."""

import bisect
import itertools
import math
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

from packshot.chart import (
    COLOURS,
    Frame,
    Point,
    Tick,
    area,
    bar,
    dashed,
    dot,
    even_ticks,
    legend,
    log_ticks,
    polyline,
    side_by_side,
)
from packshot.intervals import nearest_rank, quantile_interval
from packshot.load.observed import ServerWindow
from packshot.load.report import NEVER_SENT, LoadReport
from packshot.load.tally import decoded

BINS = 40
STEPS_A_NINE = 40  # points of the curve between 90 and 99 %
MOST_NINES = 5
IN_WORDS = {
    "RESOURCE_EXHAUSTED": "refused",
    "DEADLINE_EXCEEDED": "expired",
    **dict.fromkeys(NEVER_SENT, "never sent"),
}


class Latencies(NamedTuple):
    """In ms, ascending; `below`: how many answers took that long or less."""

    ms: list[float]
    counts: list[int]
    below: list[int]

    @property
    def total(self) -> int:
        return self.below[-1]

    def at(self, share: float) -> float:
        """The quantile, by the nearest rank."""
        return self.ms[bisect.bisect_left(self.below, nearest_rank(share, self.total))]


def run_charts(report: LoadReport) -> str:
    charts = []
    if report.answers.by_slice:
        charts.append(answers_chart(report))
    if report.sent:
        charts.append(outcomes_chart(report))
    if report.answered:
        latencies = recorded(report.latency_histogram)
        charts += [percentile_chart(latencies, report), histogram_chart(latencies, report)]
    if report.server is not None:
        charts += [stages_chart(report.server), batches_chart(report.server)]
    charts.append(cores_chart(report))
    return side_by_side(charts)


def answers_chart(report: LoadReport) -> str:
    """By when they came, in the slices of the window."""
    seconds = report.stopped_after or report.plan.seconds
    offered = report.offered_images_per_second if report.plan.rate else 0.0
    rates = {"answered": report.answers.by_slice, "in time": report.goodput.by_slice}
    times, ticks = even_ticks(seconds), even_ticks(max(offered, *report.answers.by_slice))
    frame = Frame(
        title="images/s over the window",
        x=(times[0], times[-1]),
        y=(ticks[0], ticks[-1]),
        x_label="seconds since it opened",
        tick="{:g}".format,
        x_tick="{:g}".format,
        x_ticks=times,
        y_ticks=ticks,
    )
    marks = []
    if offered:
        marks.append(dashed(frame, (seconds, offered), (0, offered), f"{offered:.4g}/s offered"))
    for (name, by_slice), colour in zip(rates.items(), COLOURS, strict=False):
        slice_seconds = seconds / len(by_slice)
        points = [((i + 0.5) * slice_seconds, rate) for i, rate in enumerate(by_slice)]
        marks.append(polyline(frame, points, colour))
        marks += [
            dot(frame, (at, rate), colour, f"{name} around {at:.1f} s: {rate:.1f} images/s")
            for at, rate in points
        ]
    return frame.drawn([*marks, *legend(list(rates), column=62)])


def outcomes_chart(report: LoadReport) -> str:
    """Of all requests that were due: in time, too late, and why there was no answer."""
    counts = Counter({"in time": report.in_time, "too late": report.answered - report.in_time})
    for code, count in report.errors.items():
        counts[IN_WORDS.get(code, code.lower().replace("_", " "))] += count
    names = [name.replace(" ", "\n", 1) for name in counts]
    frame = _categories("share of the requests", names, [1.0], tick="{:.0%}".format)
    marks = [
        bar(frame, (i - 0.3, i + 0.3), count / report.sent, COLOURS[i > 0], f"{name}: {count}")
        for i, (name, count) in enumerate(counts.items())
    ]
    return frame.drawn(marks)


def cores_chart(report: LoadReport) -> str:
    cores = {"client": sum(report.client_cores)}
    if report.server is not None:
        cores["server"] = report.server.cpu_cores
    frame = _categories("CPU, cores", list(cores), [1.0, *cores.values()])
    marks = [
        bar(frame, (i - 0.3, i + 0.3), used, COLOURS[i], f"{name}: {used:.2f} cores")
        for i, (name, used) in enumerate(cores.items())
    ]
    return frame.drawn(marks)


def recorded(histogram: str) -> Latencies:
    """Of an encoded HDR histogram of microseconds that is not empty."""
    found = [
        (each.value_iterated_to / 1000, each.count_at_value_iterated_to)
        for each in decoded(histogram).get_recorded_iterator()
    ]
    ms, counts = [ms for ms, _ in found], [count for _, count in found]
    return Latencies(ms, counts, list(itertools.accumulate(counts)))


def percentile_chart(latencies: Latencies, report: LoadReport) -> str:
    """As far as there are answers: of 200 the axis ends at 99.9 %."""
    nines = min(MOST_NINES, max(1, math.ceil(math.log10(latencies.total))))
    last = 1 - 10.0**-nines
    ticks = even_ticks(max(latencies.ms[-1], report.plan.slo_ms or 0.0))
    frame = Frame(
        title="latency by percentile, ms",
        x=(0.0, last),
        y=(ticks[0], ticks[-1]),
        x_label="of the answers, %",
        tick="{:g}".format,
        x_tick=lambda share: f"{share * 100:g}",
        x_ticks=(0.0, 0.5, *(1 - 10.0**-each for each in range(1, nines + 1))),
        y_ticks=ticks,
        x_scale=lambda share: -math.log10(1 - share),
    )
    shares = [1 - 10.0 ** (-each / STEPS_A_NINE) for each in range(nines * STEPS_A_NINE + 1)]
    lower, upper = _interval(latencies, shares)
    marks = [
        area(frame, lower + upper[::-1], COLOURS[0]),
        _slo(frame, report),
        polyline(frame, [(share, latencies.at(share)) for share in shares], COLOURS[0]),
    ]
    return frame.drawn(marks)


def _interval(latencies: Latencies, shares: Sequence[float]) -> tuple[list[Point], list[Point]]:
    """95 %, by rank; from 0 or to infinity where that rank is beyond all answers."""
    lower, upper = [], []
    for share in shares:
        low, high = quantile_interval(share, latencies.total)
        lower.append((share, latencies.at(low) if low else 0.0))
        upper.append((share, latencies.at(high) if high < 1 else math.inf))
    return lower, upper


def _slo(frame: Frame, report: LoadReport) -> str:
    slo_ms = report.plan.slo_ms
    if slo_ms is None:
        return ""
    return dashed(frame, (frame.x[1], slo_ms), (frame.x[0], slo_ms), f"SLO {slo_ms:g} ms")


def histogram_chart(latencies: Latencies, report: LoadReport) -> str:
    """Bins as wide as each other on a logarithmic axis."""
    ticks = log_ticks(latencies.ms[0], latencies.ms[-1])
    growth = (ticks[-1] / ticks[0]) ** (1 / BINS)
    edges = [ticks[0] * growth**i for i in range(BINS + 1)]
    counts = [0] * BINS
    for ms, count in zip(latencies.ms, latencies.counts, strict=True):
        counts[min(BINS - 1, max(0, bisect.bisect_right(edges, ms) - 1))] += count
    heights = even_ticks(max(counts))
    frame = Frame(
        title="answers by latency",
        x=(ticks[0], ticks[-1]),
        y=(heights[0], heights[-1]),
        x_label="ms",
        tick="{:g}".format,
        x_tick="{:g}".format,
        x_ticks=ticks,
        y_ticks=heights,
        x_scale=math.log10,
    )
    slo_ms = report.plan.slo_ms or math.inf
    bars = [
        bar(
            frame,
            (low, high),
            count,
            COLOURS[low >= slo_ms],
            f"{low:.1f} to {high:.1f} ms: {count}",
        )
        for low, high, count in zip(edges, edges[1:], counts, strict=False)
        if count
    ]
    line = dashed(frame, (slo_ms, frame.y[0]), (slo_ms, frame.y[1]), f"SLO {slo_ms:g} ms")
    return frame.drawn([*bars, line])


def stages_chart(server: ServerWindow) -> str:
    names = list(server.stages)
    times = list(server.stages.values())
    frame = _categories("server: ms by stage", names, [one.p99_ms for one in times])
    marks = [
        bar(
            frame, (i - 0.3, i + 0.3), one.mean_ms, COLOURS[0], f"{name}: mean {one.mean_ms:.1f} ms"
        )
        for i, (name, one) in enumerate(server.stages.items())
    ]
    marks += [
        dot(frame, (i, one.p99_ms), COLOURS[1], f"{name}: p99 {one.p99_ms:.1f} ms")
        for i, (name, one) in enumerate(server.stages.items())
    ]
    return frame.drawn([*marks, *legend(["mean", "p99"], column=40)])


def batches_chart(server: ServerWindow) -> str:
    counts = list(server.batches.values())
    frame = _categories("server: batches by size", list(server.batches), counts, "images, up to")
    marks = [
        bar(frame, (i - 0.3, i + 0.3), count, COLOURS[0], f"up to {bound} images: {count} batches")
        for i, (bound, count) in enumerate(server.batches.items())
    ]
    return frame.drawn(marks)


def _categories(
    title: str,
    names: Sequence[str],
    heights: Sequence[float],
    label: str = "",
    tick: Tick = "{:g}".format,
) -> Frame:
    ticks = even_ticks(max(heights, default=0.0))
    return Frame(
        title=title,
        x=(-0.5, max(1, len(names)) - 0.5),
        y=(ticks[0], ticks[-1]),
        x_label=label,
        tick=tick,
        x_tick=lambda at: names[round(at)] if names else "",
        x_ticks=tuple(float(i) for i in range(len(names))) or (0.0,),
        y_ticks=ticks,
    )
