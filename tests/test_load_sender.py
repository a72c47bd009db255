"""One client process of the load tester: what it sends when, and how it counts."""

import asyncio
import math
import socket
import subprocess
import sys
import time
from fractions import Fraction
from itertools import pairwise

import msgspec
import numpy as np
import pytest
from load_records import plan_at, tally_of
from processes import ROOT

from packshot.errors import InvalidInput
from packshot.intervals import mean_interval, quantile_interval
from packshot.load import sender, wire
from packshot.load.arrivals import due_times
from packshot.load.messages import Done, GiveUp, Order, Progress, Ready, Setup, Stop, encoded, read
from packshot.load.observed import Reading, between
from packshot.load.report import report_of
from packshot.load.sender import Run
from packshot.load.tally import Recorder, Tally, Window, decoded, merged
from packshot.load.wire import requests_of
from packshot.v1 import classifier_pb2 as pb


def test_constant_arrivals_of_several_senders_are_evenly_spaced():
    plan = plan_at(arrivals="constant")
    dues = sorted(
        due for number in range(3) for due in due_times(plan, 5.0, 7.0, number=number, senders=3)
    )
    assert dues == pytest.approx(np.arange(200) / 100 + 5.0)


def test_poisson_arrivals_of_several_senders_have_the_rate_and_are_seeded():
    plan = plan_at(warmup_seconds=50, seconds=150)
    parts = [list(due_times(plan, 0.0, 200.0, number=n, senders=2)) for n in range(2)]
    again = list(due_times(plan, 0.0, 200.0, number=0, senders=2))
    assert parts[0] == again != parts[1]
    assert all(part == sorted(part) for part in parts)
    gaps = np.array([b - a for a, b in pairwise(sorted(parts[0] + parts[1]))])
    # 20,000 gaps of an exponential distribution: the deviation is as large as the mean.
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.03)
    other = msgspec.structs.replace(plan, seed=1)
    assert list(due_times(other, 0.0, 200.0, number=0, senders=2)) != again


@pytest.mark.parametrize("senders", [1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_as_many_are_due_as_the_rate_says_whatever_the_seed(seed, senders):
    plan = plan_at(rate=7, warmup_seconds=3.0, seconds=10.0, seed=seed)
    dues = [
        due
        for number in range(senders)
        for due in due_times(plan, 5.0, 18.0, number=number, senders=senders)
    ]
    assert (sum(due < 8.0 for due in dues), sum(due >= 8.0 for due in dues)) == (21, 70)
    assert all(5.0 <= due < 18.0 for due in dues)


def test_only_the_window_counts_and_by_when_each_was_due():
    recorder = Recorder(Window(10.0, 20.0), in_time_seconds=1.0)
    for due, answered in ((9.0, 10.5), (10.0, 10.5), (19.5, 21.0), (20.0, 20.1)):
        recorder.sent(due)
        recorder.answered(due, answered, images=2, image_errors={"damaged": 1})
    recorder.not_answered(9.9, "UNAVAILABLE")
    recorder.not_answered(11.0, "UNAVAILABLE")
    tally = recorder.tally(cpu_seconds=0.5)
    assert (tally.sent, tally.answered, tally.in_time, tally.images_in_all) == (2, 2, 1, 4)
    assert (tally.errors, tally.image_errors) == ({"UNAVAILABLE": 1}, {"damaged": 2})
    assert tally.images_by_slice == [2, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    assert tally.in_time_by_slice == [1, 0, 0, 0, 0, 0, 0, 0, 0, 0]
    histogram = decoded(tally.latency)
    assert histogram.get_total_count() == 2
    assert histogram.get_value_at_percentile(100) == pytest.approx(1.5e6, rel=1e-3)


class AtOnce:
    """In the place of a connection: answers at once. `allowed`: the seconds each answer had."""

    images_per_request = 1

    def __init__(self) -> None:
        self.allowed: list[float] = []

    async def exchange(self, timeout_seconds: float) -> bytes:
        self.allowed.append(timeout_seconds)
        return b""

    def image_errors(self, _reply: bytes) -> dict[str, int]:
        return {}


def test_what_is_sent_late_counts_from_when_it_was_due():
    """A sender that begins a second after it should have."""
    plan = plan_at(rate=10, arrivals="constant", warmup_seconds=0.5, seconds=1.0, timeout_seconds=9)
    at_once, begin = AtOnce(), time.monotonic() - 1.0
    run = Run(at_once, Order(plan=plan, number=0, senders=1, begin=begin))  # type: ignore[arg-type]
    tally = asyncio.run(run.tally(lambda _: None))
    assert (tally.sent, tally.answered, tally.images_in_all) == (10, 10, 15)
    # Due half a second after the beginning, the first after the warm-up.
    for histogram in (decoded(tally.latency), decoded(tally.lag)):
        assert histogram.get_max_value() >= 0.499e6
    assert min(at_once.allowed) <= 8.0
    assert len(tally.cpu_seconds) == 1


@pytest.mark.parametrize("arrivals", ["constant", "poisson"])
def test_what_can_no_longer_be_sent_is_counted_in_one_step(arrivals):
    """A sender so late that all deadlines have passed."""
    plan = plan_at(rate=10_000, arrivals=arrivals, warmup_seconds=1.0, seconds=2.0, slo_ms=100)
    at_once, begin = AtOnce(), time.monotonic() - 3.0 - plan.timeout_seconds
    run = Run(at_once, Order(plan=plan, number=0, senders=1, begin=begin))
    tally = asyncio.run(run.tally(lambda _: None))
    assert (at_once.allowed, tally.errors) == ([], {"NOT_SENT": tally.sent})
    assert tally.sent == 20_000
    assert decoded(tally.lag).get_total_count() == 0, "none was sent, late or not"


def test_several_processes_add_up_to_one():
    random = np.random.default_rng(0)
    parts = [list(random.exponential(0.05, 300)) for _ in range(3)]
    whole = merged(tally_of(part) for part in parts)
    assert (whole.sent, whole.answered, len(whole.cpu_seconds)) == (900, 900, 3)
    exact = np.percentile(np.concatenate(parts), 99) * 1000
    report = report_of(plan_at(), whole, None)
    assert report.latency_ms["p99"] == pytest.approx(exact, rel=0.02)
    low, high = report.latency_intervals_ms["p99"]
    assert low < report.latency_ms["p99"] < high


def test_a_client_that_is_the_bottleneck_is_told():
    recorder = Recorder(Window(0.0, 10.0), in_time_seconds=1.0)
    for due in range(10):
        recorder.sent(due)
        recorder.late(due, 0.2)
        recorder.answered(due, due + 0.3, images=1, image_errors={})
    recorder.not_answered(1.0, "NOT_SENT")
    recorder.not_answered(1.0, "TOO_MANY_IN_FLIGHT")
    busy = report_of(plan_at(), recorder.tally(cpu_seconds=9.5), None)
    assert [doubt.kind for doubt in busy.doubts] == [
        "client_busy", "sent_late", "not_sent", "too_many",
    ]  # fmt: skip
    assert "95%" in busy.doubts[0].text
    assert "200 ms" in busy.doubts[1].text
    for due in range(1990):
        recorder.sent(due / 199)
        recorder.late(due / 199, 0.0)
        recorder.answered(due / 199, due / 199 + 0.3, images=1, image_errors={})
    tail = report_of(plan_at(), recorder.tally(cpu_seconds=1.0), None).doubts[0]
    assert (tail.kind, "one request in a thousand was sent 200 ms" in tail.text) == (
        "tail_late", True,
    )  # fmt: skip
    assert report_of(plan_at(), tally_of([0.01] * 100), None).doubts == ()


@pytest.mark.parametrize("count", [1, 7, 99, 100, 101, 160, 200, 999, 1000, 3000])
def test_no_fewer_answers_than_a_percentile_says_took_that_long_or_less(count):
    """And one answer fewer would be too few: the nearest rank."""
    report = report_of(plan_at(), tally_of([0.1 + k / 1000 for k in range(count)]), None)
    for name, ms in report.latency_ms.items():
        rank = math.ceil(Fraction(name[1:]) * count / 100)
        assert ms == pytest.approx(100 + rank - 1, rel=0.001), name


@pytest.mark.parametrize(
    ("late_seconds", "told"),
    [
        ([0.002] * 9, "1 ms are less than the client's own delay, which is up to 2.0 ms"),
        ([0.2] * 9, "the client cannot offer this rate"),
        ([], "the client cannot offer this rate"),
    ],
)
def test_a_deadline_that_is_too_short_is_no_rate_that_is_too_high(late_seconds, told):
    recorder = Recorder(Window(0.0, 10.0), in_time_seconds=1.0)
    for seconds in late_seconds:
        recorder.late(1.0, seconds)
    recorder.not_answered(1.0, "NOT_SENT")
    report = report_of(plan_at(timeout_seconds=0.001), recorder.tally(cpu_seconds=1.0), None)
    assert f"as the deadline had passed by then: {told}" in report.doubts[-1].text


def test_intervals_hold_what_they_promise():
    """Of 2,000 draws, about 95 % hold the truth: fewer of a skewed distribution's 99th."""
    random = np.random.default_rng(0)
    means = [mean_interval(list(random.normal(5, 2, 10))) for _ in range(2000)]
    assert np.mean([low <= 5 <= high for low, high in means]) == pytest.approx(0.95, abs=0.015)
    truth, held = -np.log(0.1), []
    for _ in range(2000):
        drawn = np.sort(random.exponential(1, 400))
        low, high = (int(round(share * 400)) for share in quantile_interval(0.9, 400))
        held.append(drawn[low - 1] <= truth <= drawn[min(high, 399)])
    assert np.mean(held) == pytest.approx(0.95, abs=0.02)
    with pytest.raises(ValueError, match="3 samples"):
        mean_interval([1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    ("count", "size", "requests"), [(5, 2, 3), (2, 5, 1), (4, 4, 1), (3, 1, 3)]
)
def test_the_largest_request_is_known_before_it_is_made(monkeypatch, count, size, requests):
    images = [bytes(number * 10) for number in range(1, count + 1)]
    endless = [*images * size]
    largest = max(sum(map(len, endless[k * size : (k + 1) * size])) for k in range(requests))
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", largest)
    assert len(requests_of(plan_at(images_per_request=size), images)) == requests
    monkeypatch.setattr(wire, "MAX_MESSAGE_BYTES", largest - 1)
    with pytest.raises(InvalidInput, match=f"have {largest} bytes; a request has at most"):
        requests_of(plan_at(images_per_request=size), images)


@pytest.mark.parametrize(
    ("count", "size", "requests"), [(5, 2, 3), (2, 5, 1), (4, 4, 1), (3, 1, 3)]
)
def test_every_image_is_sent(count, size, requests):
    images = [bytes([number]) * 10 for number in range(count)]
    made = requests_of(plan_at(images_per_request=size), images)
    parsed = [pb.ClassifyRequest.FromString(one) for one in made]
    assert [len(one.images) for one in parsed] == [size] * requests
    assert {image.encoded for one in parsed for image in one.images} == set(images)


def test_a_closed_loop_whose_process_is_held_up_says_how_late_it_was():
    class Starved(AtOnce):
        async def exchange(self, timeout_seconds: float) -> bytes:
            busy_until = time.monotonic() + 0.06
            while time.monotonic() < busy_until:  # nothing else runs: answers wait to be read
                pass
            return b""

    plan = plan_at(rate=None, concurrency=2, warmup_seconds=0.0, seconds=0.3)
    run = Run(Starved(), Order(plan=plan, number=0, senders=1, begin=time.monotonic()))
    report = report_of(plan, asyncio.run(run.tally(lambda _: None)), None)
    assert report.lag_ms["p99"] >= 30
    (doubt,) = (one for one in report.doubts if one.kind == "sent_late")
    assert "the client was" in doubt.text


def test_no_more_are_in_flight_than_memory_has_room_for(monkeypatch):
    monkeypatch.setattr(sender, "MOST_IN_FLIGHT", 3)

    class Silent(AtOnce):
        let_go = asyncio.Event()

        async def exchange(self, timeout_seconds: float) -> bytes:
            self.allowed.append(timeout_seconds)
            if len(self.allowed) == 3:  # the last that is sent: the rest were due before it is out
                asyncio.get_running_loop().call_later(0.3, self.let_go.set)
            await self.let_go.wait()
            return b""

    plan = plan_at(rate=100, arrivals="constant", warmup_seconds=0.0, seconds=0.1)
    begin = time.monotonic() - 0.1  # all are due
    run = Run(Silent(), Order(plan=plan, number=0, senders=1, begin=begin))
    tally = asyncio.run(run.tally(lambda _: None))
    assert (tally.sent, tally.answered, tally.errors) == (10, 3, {"TOO_MANY_IN_FLIGHT": 7})


@pytest.mark.parametrize("rate", [None, 20.0])
def test_cpu_is_that_of_the_window_alone(monkeypatch, rate):
    asked: list[float] = []
    monkeypatch.setattr(time, "process_time", lambda: asked.append(time.monotonic()) or 0.0)
    begin = time.monotonic()
    plan = plan_at(rate=rate, concurrency=1, warmup_seconds=0.2, seconds=0.2)
    run = Run(AtOnce(), Order(plan=plan, number=0, senders=1, begin=begin))
    asyncio.run(run.tally(lambda _: None))
    opened, closed = asked
    assert opened >= begin + 0.2
    assert closed >= begin + 0.4


@pytest.mark.parametrize("rate", [None, 0.1])
def test_a_run_that_is_told_to_stop_counts_what_was_sent_until_then(rate):
    """At 0.1 requests a second the next one would be due much later."""
    begin = time.monotonic()
    plan = plan_at(rate=rate, concurrency=3, warmup_seconds=0.0, seconds=60.0, arrivals="constant")
    expected = 1 if rate else 3
    waiting = Held(expected)
    run = Run(waiting, Order(plan=plan, number=0, senders=1, begin=begin))

    async def stopped() -> Tally:
        running = asyncio.create_task(run.tally(lambda _: None))
        await waiting.sent.wait()
        run.stop(begin - 1.0)  # heard of late: what was sent until now counts all the same
        waiting.let_go.set()
        return await running

    tally = asyncio.run(stopped())
    assert (tally.sent, tally.answered, tally.errors) == (expected, expected, {})
    assert sum(tally.images_by_slice) == 0, "all came after the window"


@pytest.mark.parametrize("rate", [None, 0.1])
def test_what_is_given_up_counts_as_that(rate):
    begin = time.monotonic()
    plan = plan_at(rate=rate, concurrency=3, warmup_seconds=0.0, seconds=60.0, arrivals="constant")
    expected = 1 if rate else 3
    waiting = Held(expected)
    run = Run(waiting, Order(plan=plan, number=0, senders=1, begin=begin))

    async def given_up() -> Tally:
        running = asyncio.create_task(run.tally(lambda _: None))
        await waiting.sent.wait()
        run.stop(begin - 1.0)
        run.give_up()
        return await running

    tally = asyncio.run(given_up())
    assert (tally.sent, tally.answered, tally.errors) == (expected, 0, {"GIVEN_UP": expected})
    report = report_of(plan, tally, None, stopped_after=1.0)
    assert (report.was_stopped, report.faults) == (True, {})
    told = "1 request was given up" if expected == 1 else "3 requests were given up"
    assert report.doubts[-1].text.startswith(told)


class Held(AtOnce):
    """Answers once it is let go; tells when so many were sent."""

    def __init__(self, expected: int) -> None:
        super().__init__()
        self.expected = expected
        self.sent, self.let_go = asyncio.Event(), asyncio.Event()

    async def exchange(self, timeout_seconds: float) -> bytes:
        self.allowed.append(timeout_seconds)
        if len(self.allowed) == self.expected:
            self.sent.set()
        await self.let_go.wait()
        return b""


def test_answers_as_even_as_can_be_still_have_an_interval():
    """Verdicts go by whether intervals overlap: 20.0 and 20.1 images a second are no difference."""
    report = report_of(plan_at(rate=20.0), tally_of([0.02] * 200), None)
    low, high = report.answers.interval
    assert (low, high) == pytest.approx((report.answers.mean - 0.1, report.answers.mean + 0.1))
    for name, (fastest, slowest) in report.latency_intervals_ms.items():
        highest = math.inf if slowest is None else slowest
        assert fastest < highest, name
        assert fastest <= report.latency_ms[name] <= highest
    ends = {name: slowest for name, (_, slowest) in report.latency_intervals_ms.items()}
    assert (ends["p50"] is None, ends["p99.9"]) == (False, None), "200 know no 99.9 %"


def test_stage_times_are_those_of_the_server_in_milliseconds():
    def reading(taken: float, count: int, seconds: float, started: float = 1.0) -> Reading:
        of = (("model", "colours"), ("stage", "decode"))
        name = "packshot_stage_seconds"
        buckets = {(f"{name}_bucket", (("le", "0.01"), *of)): count / 2}
        buckets |= {(f"{name}_bucket", (("le", bound), *of)): count for bound in ("0.02", "+Inf")}
        whole = {(f"{name}_count", of): count, (f"{name}_sum", of): seconds}
        process = {("packshot_ready", ()): 1.0, ("process_start_time_seconds", ()): started}
        return Reading(taken, {**process, **whole, **buckets})

    window = between(reading(5.0, 10, 0.3), reading(7.0, 110, 1.5), "colours")
    with pytest.raises(InvalidInput, match="restarted"):
        between(reading(5.0, 10, 0.3), reading(7.0, 110, 1.5, started=6.0), "colours")
    times = window.stages["decode"]
    assert (window.seconds, times.count) == (2.0, 100)
    assert (times.mean_ms, times.p50_ms, times.p99_ms) == pytest.approx((12.0, 10.0, 19.8))


def test_what_is_said_in_one_breath_is_all_heard():
    """Two signals, one right after the other: the second gives up what the first waits for."""
    with (
        socket.create_server(("127.0.0.1", 0)) as silent,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "packshot.load.sender"],
            cwd=ROOT, bufsize=0, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        ) as client,
    ):  # fmt: skip
        setup = Setup(
            target=f"127.0.0.1:{silent.getsockname()[1]}", tls=False, token=None, api="packshot",
            requests=[b""], images_per_request=1,
        )  # fmt: skip
        client.stdin.write(encoded(setup))
        assert read(client.stdout) == Ready()
        plan = plan_at(warmup_seconds=0.0, seconds=5.0, timeout_seconds=5.0)
        begin = time.monotonic()
        client.stdin.write(encoded(Order(plan=plan, number=0, senders=1, begin=begin)))
        in_flight = read(client.stdout).in_flight
        client.stdin.write(encoded(Stop(at=time.monotonic())) + encoded(GiveUp()))
        while not isinstance(told := read(client.stdout), Done):
            assert isinstance(told, Progress)
        client.stdin.close()
    assert told.tally.errors == {"GIVEN_UP": told.tally.sent}
    assert told.tally.sent >= in_flight > 1
