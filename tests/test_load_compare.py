"""Two results side by side: verdicts only where intervals part, and what differs is told first."""

import math

import msgspec
import pytest
from load_records import load_report, results_of, sweep_of

from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.load.compare import Measured, comparison_text, verdict
from packshot.load.results import JSON_NAME, read_results, write_results

SPREAD = [float(ms % 100 + 50) for ms in range(1000)]
USUAL = load_report(SPREAD)


def row(text: str, name: str) -> str:
    """The first of that name."""
    return next(line for line in text.splitlines() if line.startswith(name))


def compared(before, after, **served) -> str:
    return comparison_text(results_of(before), results_of(after, **served))


@pytest.mark.parametrize(
    ("before", "after", "more", "less"),
    [
        ((10.0, 20.0), (21.0, 30.0), "better", "worse"),
        ((21.0, 30.0), (10.0, 20.0), "worse", "better"),
        ((10.0, 20.0), (19.0, 30.0), "no clear difference", "no clear difference"),
        ((10.0, 20.0), (20.0, 30.0), "no clear difference", "no clear difference"),
        ((10.0, 40.0), (20.0, 30.0), "no clear difference", "no clear difference"),
        ((10.0, math.inf), (50.0, math.inf), "no clear difference", "no clear difference"),
        ((50.0, math.inf), (10.0, 20.0), "worse", "better"),
        (None, (10.0, 20.0), "", ""),
    ],
)
def test_a_verdict_needs_intervals_that_do_not_overlap(before, after, more, less):
    first, second = Measured(15.0, before), Measured(25.0, after)
    assert verdict(first, second, None) == ""
    assert verdict(first, second, "more") == more
    assert verdict(first, second, "less") == less


def test_what_is_missing_has_no_verdict():
    assert verdict(None, Measured(1.0, (0.0, 2.0)), "more") == ""
    assert verdict(Measured(1.0, (0.0, 2.0)), None, "more") == ""


def test_the_same_twice_has_no_difference_and_no_warning():
    text = compared(USUAL, USUAL)
    assert "WARNING" not in text
    assert "better" not in text
    assert "worse" not in text
    assert text.count("no clear difference") == 7


def test_twice_as_slow_is_worse_and_half_the_answers_are():
    halved = sorted(SPREAD)[::2] * 2
    before, after = load_report(halved), load_report([2 * ms for ms in halved][:500])
    text = compared(before, after)
    assert "+100.0%" in row(text, "p50, ms")
    for name in ("answers", "goodput", "p50", "p90", "p99,"):
        assert row(text, name).endswith("worse"), name
    assert "no clear difference" in row(text, "p99.9"), "of 500 answers it has no upper end"
    assert "-50." in row(text, "answers")
    back = comparison_text(results_of(after), results_of(before))
    assert row(back, "p50, ms").endswith("better")


def test_values_without_an_interval_have_a_change_only():
    server = msgspec.structs.replace(USUAL.server, cpu_ms_an_image=33.0, batch_images_mean=None)
    text = compared(USUAL, msgspec.structs.replace(USUAL, server=server))
    assert row(text, "server CPU, ms an image").split()[-3:] == ["30.0", "33.0", "+10.0%"]
    assert row(text, "images in a batch").split()[-2:] == ["-", "-"]


def test_who_refuses_more_is_no_quicker_for_it():
    refused = compared(USUAL, load_report([ms / 2 for ms in SPREAD], refused=250))
    assert row(refused, "not answered").split()[3:] == (
        ["0.0", "(0.0", "to", "0.4)", "20.0", "(17.9", "to", "22.3)", "-", "worse"]
    )
    assert row(refused, "p50, ms").endswith("%"), "no verdict"
    as_many = compared(
        load_report(SPREAD, refused=240), load_report([ms / 2 for ms in SPREAD], refused=250)
    )
    assert row(as_many, "not answered").endswith("no clear difference")
    assert row(as_many, "p50, ms").endswith("better")


def test_what_differs_between_the_two_tests_is_told_first():
    text = compared(
        load_report(SPREAD, rate=100.0),
        load_report(SPREAD, rate=80.0, slo_ms=None, pixels=True, server=None, model="asked"),
        engine="fp32",
        version="3",
    )
    head = text.split("\n\n")[0].splitlines()
    assert head[2:] == [
        "WARNING different version: 2 -> 3",
        "WARNING different engine: int8 -> fp32",
        "WARNING different rate: 100 -> 80",
        "WARNING different slo ms: 200 -> none",
        "WARNING different pixels: False -> True",
        "WARNING different server's figures: there -> missing",
    ]
    assert "100 requests/s (poisson) -> 80 requests/s (poisson)" in text


def test_the_processes_of_two_sweeps_are_those_of_their_rates():
    one = load_report([40.0] * 400, rate=40.0)
    three = msgspec.structs.replace(one, client_cores=[0.1, 0.2, 0.3])
    text = compared(sweep_of(one), sweep_of(three))
    assert "WARNING different client processes: 1 -> 3" in text


def test_doubts_of_either_are_repeated():
    late = load_report(SPREAD, lag_ms=90.0)
    assert "WARNING before, at 16 requests in flight: at one moment" in compared(late, USUAL)
    assert "WARNING after, at 16 requests in flight: at one moment" in compared(USUAL, late)


def test_of_two_sweeps_the_loops_are_compared_and_the_rates_found():
    before = sweep_of(load_report([40.0] * 400, rate=40.0))
    after = sweep_of(load_report([40.0] * 200, rate=20.0), load_report([300.0] * 300, rate=30.0))
    text = compared(before, after)
    told = "within the SLO, images/s 40.0 (40.0 or more) 20.0 (20.0 to 30.0) -50.0%"
    assert " ".join(row(text, "within the SLO").split()) == told
    kept_up = "kept up with, images/s 40.0 (40.0 or more) 30.0 (30.0 or more) -25.0%"
    assert " ".join(row(text, "kept up with").split()) == kept_up
    assert "they have no verdict; repeat both sweeps, or compare runs at one rate." in text
    assert row(text, "saturation").endswith("worse")
    assert "\n1 request in flight\n" in text
    assert "\n16 requests in flight\n" in text


def test_the_most_of_a_few_rates_is_not_held_against_that_of_all():
    whole = sweep_of(load_report([40.0] * 600, rate=60.0))
    less = msgspec.structs.replace(sweep_of(), cut_short="interrupted")
    assert row(compared(whole, sweep_of()), "saturation").endswith("worse")
    for before, after in ((whole, less), (less, whole), (less, less)):
        assert row(compared(before, after), "saturation").endswith("%")


@pytest.mark.parametrize(
    ("before", "after", "verdict"),
    [
        ({"rate": 100.0}, {"rate": 50.0}, ""),
        ({"rate": None}, {"rate": 50.0}, ""),
        ({"concurrency": 16}, {"concurrency": 8}, ""),
        ({"rate": 100.0}, {"rate": 50.0, "images_per_request": 2}, "no clear difference"),
        ({"rate": 100.0}, {"rate": 100.0}, "worse"),
        ({"rate": 100.0, "concurrency": 16}, {"rate": 100.0, "concurrency": 8}, "worse"),
        ({"concurrency": 8}, {"concurrency": 8}, "worse"),
    ],
)
def test_as_many_answers_as_were_asked_for_are_no_worse(before, after, verdict):
    half = sorted(SPREAD)[::2]
    text = compared(load_report(sorted(half * 2), **before), load_report(half, **after))
    for name in ("answers", "goodput"):
        assert row(text, name).split("%")[-1].strip() == verdict, name
    alike = "no clear difference" if verdict else ""
    for name in ("p50, ms", "not answered"):
        assert row(text, name).split("%" if name == "p50, ms" else "-")[-1].strip() == alike, name


def test_two_loops_of_the_same_kind_stay_two():
    sweep = sweep_of(concurrency=1)
    assert compared(sweep, sweep).count("p99.9, ms") == 2


def test_nothing_answered_is_compared_without_a_change():
    text = compared(load_report(refused=10), USUAL)
    assert row(text, "p50, ms").split()[2:3] == ["-"]
    assert row(text, "answers").split()[-1] == "better"


def test_a_run_and_a_sweep_are_refused_with_the_remedy():
    with pytest.raises(InvalidInput, match="measure both with --sweep, or both without"):
        compared(USUAL, sweep_of())


def test_results_that_are_lost_or_damaged_are_named(tmp_path):
    with pytest.raises(NotFound, match=r"load\.json: no such file; `packshot load --out"):
        read_results(tmp_path)
    results = results_of(USUAL)
    write_results(tmp_path, results, "")
    assert read_results(tmp_path) == results == read_results(tmp_path / JSON_NAME)
    whole = (tmp_path / JSON_NAME).read_bytes()
    for damaged in (b"", whole[:-10], b"[]", whole.replace(b'"sent"', b'"send"')):
        (tmp_path / JSON_NAME).write_bytes(damaged)
        with pytest.raises(
            DamagedFile, match=r"load\.json is not a result of a load test of format 1"
        ):
            read_results(tmp_path)
    (tmp_path / JSON_NAME).write_bytes(b'{"format": 99, "of": "another time"}')
    with pytest.raises(DamagedFile, match="has format 99; this packshot reads format 1: update"):
        read_results(tmp_path)
