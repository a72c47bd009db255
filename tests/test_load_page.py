"""load.html shows what was measured, where it belongs, and nothing that it was not given."""

import math
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import msgspec
import pytest
from load_records import load_report, results_of, sweep_of

from packshot.chart import COLOURS, HEIGHT, WIDTH, even_ticks, log_ticks
from packshot.load.caution import latency_interval
from packshot.load.charts import latency_chart, missed_chart, throughput_chart
from packshot.load.page import page
from packshot.load.run_charts import (
    answers_chart,
    histogram_chart,
    outcomes_chart,
    percentile_chart,
    recorded,
    run_charts,
)
from packshot.load.text import results_text

HOSTILE = '<img src=x onerror="a()">'
SPREAD = [float(ms) for ms in range(1, 401)]
RUN = load_report(SPREAD)
RATES = (
    load_report([40.0] * 100, rate=10.0),
    load_report([100.0] * 190 + [150.0] * 10, rate=20.0),
    load_report([500.0] * 300, refused=100, rate=40.0),
)
SWEEP = sweep_of(*RATES)


class Parsed(HTMLParser):
    """What a browser would make of a page: its elements, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


def charts(html: str) -> dict[str, ElementTree.Element]:
    """By title; each with all that it draws inside the picture."""
    found = {}
    for text in re.findall(r"<svg.*?</svg>", html, re.DOTALL):
        chart = ElementTree.fromstring(text)
        found[chart.get("aria-label")] = chart
        for line in [*chart.iter("polyline"), *chart.iter("polygon")]:
            for x, y in re.findall(r"(\S+),(\S+)", line.get("points")):
                assert 0 <= float(x) <= WIDTH
                assert 0 <= float(y) <= HEIGHT
    return found


def chart_of(svg: str) -> ElementTree.Element:
    (chart,) = charts(svg).values()
    return chart


def height_of(chart: ElementTree.Element, tick: str) -> float:
    """The y of a tick's line."""
    texts = [text for text in chart.iter("text") if text.get("class") == "end"]
    return next(float(text.get("y")) - 4 for text in texts if text.text == tick)


def across_of(chart: ElementTree.Element, tick: str) -> float:
    texts = [text for text in chart.iter("text") if text.get("class") == "middle"]
    return next(float(text.get("x")) for text in texts if text.text == tick)


def dots(chart: ElementTree.Element, name: str) -> list[tuple[float, float]]:
    return [
        (float(dot.get("cx")), float(dot.get("cy")))
        for dot in chart.iter("circle")
        if dot.find("title").text.startswith(f"{name} ")
    ]


def close(found, wanted) -> bool:
    return found == pytest.approx(wanted, abs=0.2)  # pixels


def test_a_sweep_is_shown_whole():
    html = page(results_of(SWEEP))
    assert set(charts(html)) == {
        "latency, ms", "images/s", "share of the requests", "server: mean ms",
        "server: images in a batch", "CPU, cores", "client: late by, ms", "server: memory, MB",
    }  # fmt: skip
    text = Parsed(html).text
    for part in (
        "30.0 images/ssaturation",
        "up to 20.0 images/sall rates tried had 99% of the requests within 200 ms",
        "50.0 msone request alone",
        "1 in flight",
        "100 of 400",
        "100 RESOURCE_EXHAUSTED",
        "a sweep: 1 and 16 in flight, then rates (poisson)",
        "24 of 196.0 kB in the mean",
        "when the request was due",
        "Student's t",
    ):
        assert part in text, part


def test_rates_are_told_as_they_were_asked_for():
    """Though of 10 and 11 requests a second 13 and 10.5 were due, as in results of before."""
    points = [
        load_report([ms] * due, rate=rate, images_per_request=4)
        for rate, due, ms in ((10.0, 130, 40.0), (11.0, 105, 500.0))
    ]
    results = results_of(sweep_of(*points, images_per_request=4))
    sweep = results.sweep
    assert (sweep.within_slo, sweep.beyond_slo) == (40.0, 44.0)
    assert (sweep.kept_up_with, sweep.not_kept_up_with) == (44.0, math.inf)
    html = page(results)
    assert "up to 40.0 images/s" in results_text(results)
    chart = charts(html)["latency, ms"]
    assert close(dots(chart, "p50")[0][0], across_of(chart, "40"))


@pytest.mark.parametrize(
    ("passed", "rates", "more"),
    [
        ((20.0,), "up to 20.0 images/s all rates tried", ""),
        ((20.0, 60.0), "up to 20.0 images/s all rates tried", "40.0/s"),
        ((60.0,), "no rate up to 20.0/s", "20.0/s"),
        ((), "no rate tried", ""),
    ],
)
def test_a_rate_above_one_that_failed_is_told_where_it_met_the_slo(passed, rates, more):
    points = [
        load_report([40.0 if rate in passed else 500.0] * round(10 * rate), rate=rate)
        for rate in (20.0, 40.0, 60.0)
    ]
    results = results_of(sweep_of(*points))
    told = f"{rates} had 99% of the requests within 200 ms"
    if more:
        told += f"; {more} failed, though a higher one passed"
    assert told in results_text(results).splitlines()
    assert f">{told}<" in re.sub("</b><span>", " ", page(results))


def test_a_deadline_below_the_slo_is_what_goodput_and_rates_are_within():
    short = {"slo_ms": 5000.0, "timeout_seconds": 0.5}
    run = results_of(load_report([100.0] * 400, rate=40.0, **short))
    sweep = results_of(sweep_of(*run.runs, **short))
    assert "images/s within 500 ms (the deadline)" in results_text(run)
    assert "goodput, within 500 ms (the deadline); " in page(run)
    told = "had 99% of the requests within 500 ms (the deadline)"
    assert told in results_text(sweep)
    assert told in page(sweep)


def test_the_processes_of_a_sweep_are_those_of_its_rates():
    rate = msgspec.structs.replace(RATES[0], client_cores=[0.1, 0.2, 0.3])
    assert "3 process(es)" in Parsed(page(results_of(sweep_of(rate)))).text


def test_a_run_is_shown_whole():
    html = page(results_of(load_report(SPREAD, refused=100, rate=50.0, errors={"damaged": 1})))
    assert set(charts(html)) == {
        "images/s over the window", "share of the requests", "latency by percentile, ms",
        "answers by latency", "server: ms by stage", "server: batches by size", "CPU, cores",
    }  # fmt: skip
    text = Parsed(html).text
    for part in (
        "goodput, within 200 ms",
        "20.0%not answered: 100 of 500 requests",
        "100 RESOURCE_EXHAUSTED, 400 image(s) damaged",
        "3 deadline",
        "server, cores1.50",
        "client, cores of each process0.05",
        "50 requests/s (poisson)",
    ):
        assert part in text, part


@pytest.mark.parametrize("found", [RUN, SWEEP])
def test_the_page_needs_nothing_but_itself(found):
    parsed = Parsed(page(results_of(found)))
    assert not parsed.tags & {"script", "link", "img", "iframe", "object"}
    assert not {name for name, _ in parsed.attributes} & {"src", "href", "srcset"}
    assert not re.search(r"url\(|@import", parsed.text)


def test_names_are_text_whatever_they_hold():
    plan = {"target": f"{HOSTILE}:1", "model": HOSTILE}
    run = load_report(SPREAD, **plan)
    run = msgspec.structs.replace(
        run,
        errors={HOSTILE: 1},
        server=msgspec.structs.replace(
            run.server,
            stages={HOSTILE: run.server.stages["decode"]},
            batches={HOSTILE: 1},
            refused={HOSTILE: 1},
        ),
    )
    parsed = Parsed(page(results_of(run, model=HOSTILE, version=HOSTILE, engine=HOSTILE)))
    assert "img" not in parsed.tags
    assert "onerror" not in {name for name, _ in parsed.attributes}
    assert parsed.text.count(HOSTILE) >= 10


def test_latencies_lie_at_their_rate_and_time():
    chart = chart_of(latency_chart(RATES, 200.0, 20.0))
    at = [across_of(chart, tick) for tick in ("10", "20", "40")]
    assert close([x for x, _ in dots(chart, "p50")], at)
    assert close(dots(chart, "p50")[1][1], height_of(chart, "100"))
    assert close(dots(chart, "p99.9")[2][1], height_of(chart, "500"))
    fifty, hundred, double = (height_of(chart, tick) for tick in ("50", "100", "200"))
    assert close(fifty - hundred, hundred - double), "a logarithmic axis"
    slo, within = [line for line in chart.iter("line") if line.get("class") == "dashed"]
    assert close(float(slo.get("y1")), height_of(chart, "200"))
    assert close(float(within.get("x1")), across_of(chart, "20"))


def test_answers_part_from_what_was_offered_where_requests_were_refused():
    chart = chart_of(throughput_chart(RATES))
    assert close(dots(chart, "answered")[0], (across_of(chart, "10"), height_of(chart, "10")))
    (identity,) = [line for line in chart.iter("line") if line.get("class") == "dashed"]
    start, end = [(float(identity.get(f"x{i}")), float(identity.get(f"y{i}"))) for i in (1, 2)]
    assert close(start, (across_of(chart, "0"), height_of(chart, "0")))
    assert close(end, (across_of(chart, "40"), height_of(chart, "40")))
    assert dots(chart, "answered")[2][1] > height_of(chart, "40") + 5, "lower on the picture"
    assert close(dots(chart, "in time")[2][1], height_of(chart, "0"))


def test_what_was_refused_and_what_came_late_are_shares_of_what_was_sent():
    chart = chart_of(missed_chart(RATES))
    assert close(dots(chart, "not answered")[1][1], height_of(chart, "0%"))
    assert close(dots(chart, "not answered")[2][1], height_of(chart, "25%"))
    assert close(dots(chart, "too late")[2][1], height_of(chart, "75%"))


def test_the_percentile_curve_is_that_of_the_report():
    run = load_report([float(ms) for ms in range(1, 2001)], slo_ms=500.0)
    latencies = recorded(run.latency_histogram)
    for name, ms in run.latency_ms.items():
        assert latencies.at(float(name[1:]) / 100) == ms
    chart = chart_of(percentile_chart(latencies, run))
    ticks = [text.text for text in chart.iter("text") if text.get("class") == "middle"]
    assert ticks == ["0", "50", "90", "99", "99.9", "99.99", "of the answers, %"]
    (curve,) = chart.iter("polyline")
    x, y = curve.get("points").split()[-1].split(",")
    assert close((float(x), float(y)), (across_of(chart, "99.99"), height_of(chart, "2000")))


def test_the_histogram_has_every_answer_and_marks_late_ones():
    run = load_report([20.0] * 30 + [90.0] * 10 + [450.0] * 5)
    chart = chart_of(histogram_chart(recorded(run.latency_histogram), run))
    bars = [(bar.find("title").text.split(": ")[1], bar.get("fill")) for bar in chart.iter("rect")]
    assert bars == [("30", COLOURS[0]), ("10", COLOURS[0]), ("5", COLOURS[1])]


@pytest.mark.parametrize("answers", [[], [7.0]])
def test_a_run_of_no_answer_or_one_is_shown(answers):
    html = page(results_of(load_report(answers, refused=20)))
    assert ("answers by latency" in charts(html)) is bool(answers)
    assert ("no answer" in Parsed(html).text) is (not answers)


def test_a_sweep_of_no_answer_is_shown():
    silent = load_report(refused=20)
    sweep = msgspec.structs.replace(sweep_of(), alone=silent, closed=silent)
    text = Parsed(page(results_of(sweep))).text
    assert "there was no rate to try" in text
    assert "no rate triedhad 99% of the requests within 200 ms" in text
    charts(page(results_of(msgspec.structs.replace(sweep, points=(load_report(rate=1.0),)))))


def test_without_the_servers_figures_the_page_tells_how_to_get_them():
    plain = sweep_of(load_report(SPREAD, rate=40.0, server=None), server=None)
    for found in (plain, plain.closed):
        html = page(results_of(found))
        assert not [title for title in charts(html) if title.startswith("server")]
        assert "--metrics-url http://HOST:PORT/metrics" in html
    assert "--metrics-url" not in page(results_of(RUN))


def test_without_an_slo_there_is_no_line_for_one():
    free = sweep_of(load_report(SPREAD, rate=40.0, slo_ms=None), slo_ms=None)
    for found in (free, load_report(SPREAD, slo_ms=None)):
        html = page(results_of(found))
        assert not re.search(r"SLO \d|within \d+ ms", html)


def test_doubts_come_before_the_figures():
    text = Parsed(page(results_of(load_report(SPREAD, lag_ms=80.0, rate=40.0)))).text
    doubt = text.index("sent 80 ms or more after it was due: this machine is too busy")
    assert doubt < text.index("p50 latency")
    assert "The client kept up" not in text
    assert "The client kept up" in page(results_of(RUN))


def test_percentiles_of_few_answers_have_no_upper_end():
    text = Parsed(page(results_of(RUN))).text
    assert "Too few answers to tell p99.9 (fewer than 1000)" in text
    assert f"{RUN.latency_intervals_ms['p99.9'][0]:.1f} or more" in text
    low, high = RUN.latency_intervals_ms["p50"]
    assert f"{low:.1f} to {high:.1f}" in text
    many = load_report([float(ms % 400 + 1) for ms in range(4000)])
    assert "Too few answers" not in page(results_of(many))
    assert latency_interval(many, "p99.9")[1] < math.inf
    assert latency_interval(load_report([7.0]), "p50") == (0.0, math.inf)


@pytest.mark.parametrize("highest", [0.0, 0.03, 1.0, 7.0, 9.9, 10.0, 183.0, 25_000.0])
def test_even_ticks_go_from_zero_to_the_highest_or_above(highest):
    ticks = even_ticks(highest)
    assert ticks[0] == 0
    assert ticks[-2] < (highest or 1) <= ticks[-1] * (1 + 1e-9)
    assert 3 <= len(ticks) <= 6


@pytest.mark.parametrize("edges", [(0.3, 0.3), (10.0, 10.0), (9.9, 400.0), (0.02, 90_000.0)])
def test_log_ticks_hold_both_edges(edges):
    ticks = log_ticks(*edges)
    assert ticks[0] <= edges[0] <= edges[1] <= ticks[-1]
    assert ticks[0] < ticks[-1]
    assert len(ticks) <= 12


def told(chart: ElementTree.Element) -> list[str]:
    """What the bars say under the mouse."""
    return [bar.find("title").text for bar in chart.iter("rect")]


def test_what_became_of_the_requests_of_a_run():
    """100 in time, 60 too late, 40 refused and 3 lost, in this order."""
    run = load_report([100.0] * 100 + [500.0] * 60, refused=40, rate=20.0)
    run = msgspec.structs.replace(run, sent=203, errors={**run.errors, "UNAVAILABLE": 3})
    chart = chart_of(outcomes_chart(run))
    assert told(chart) == ["in time: 100", "too late: 60", "refused: 40", "unavailable: 3"]
    none, whole = height_of(chart, "0%"), height_of(chart, "100%")
    heights = [float(bar.get("height")) for bar in chart.iter("rect")]
    shares = [100 / 203, 60 / 203, 40 / 203, 3 / 203]
    assert close(heights, [share * (none - whole) for share in shares])


def test_answers_are_drawn_when_they_came():
    run = load_report([100.0] * 100 + [500.0] * 60, refused=40, rate=20.0)
    chart = chart_of(answers_chart(run))
    assert len(dots(chart, "answered")) == len(dots(chart, "in time")) == 10
    none, twenty = height_of(chart, "0"), height_of(chart, "20")
    by_slice = [y for _, y in dots(chart, "in time")]
    wanted = [18.0, *[20.0] * 4, 2.0, *[0.0] * 4]
    assert close(by_slice, [none + rate / 20 * (twenty - none) for rate in wanted])
    assert "20/s offered" in [text.text for text in chart.iter("text")]
    closed = chart_of(answers_chart(load_report([100.0] * 100)))
    assert not [text for text in closed.iter("text") if "offered" in text.text]


def test_a_result_of_an_earlier_version_has_no_chart_of_what_it_did_not_keep():
    run = load_report([100.0] * 100, server=None)
    bare = msgspec.structs.replace(
        run,
        answers=msgspec.structs.replace(run.answers, by_slice=[]),
        goodput=msgspec.structs.replace(run.goodput, by_slice=[]),
    )
    assert "images/s over the window" in charts(run_charts(run))
    assert "images/s over the window" not in charts(run_charts(bare))
    assert told(charts(run_charts(bare))["CPU, cores"]) == ["client: 0.05 cores"]
