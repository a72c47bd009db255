"""The load tester: against real servers, and its arithmetic alone."""

import asyncio
import io
import json
import os
import signal
import subprocess
import sys
import time
from itertools import islice, pairwise
from pathlib import Path

import msgspec
import numpy as np
import pytest
from PIL import Image
from processes import FAKE_SERVING, ROOT, TIMEOUT, serving, until
from tiny import PURE, encoded, jpeg, tiny_bundle

from packshot.channel import Connection
from packshot.cli import main
from packshot.errors import InvalidInput, ServiceFailed
from packshot.image import open_image
from packshot.intervals import mean_interval, quantile_interval
from packshot.load import LoadPlan, LoadReport, Source, run_load
from packshot.load.arrivals import due_times
from packshot.load.command import Live
from packshot.load.messages import Order
from packshot.load.observed import between, read_metrics
from packshot.load.pictures import photos
from packshot.load.report import report_of, report_text
from packshot.load.results import Results, read_results
from packshot.load.sender import Run
from packshot.load.senders import State, senders
from packshot.load.sweep import sweep, sweep_of
from packshot.load.tally import Recorder, Tally, Window, decoded, merged
from packshot.load.wire import requests_of
from packshot.v1 import classifier_pb2 as pb

RED = jpeg(PURE["red"])
AT_ONCE = {"warmup_seconds": 0.0, "arrivals": "constant"}


def load_command(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "packshot.cli", "load", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip


def test_every_request_is_counted_and_the_server_says_the_same(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    done = load_command(
        tmp_path, "--target", server.target, "--rate", 20, "--arrivals", "constant", "--warmup", 0,
        "--seconds", 1, "--processes", 2, "--json", "--metrics-url", server.metrics_url,
        "--out", tmp_path / "out",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    results = msgspec.json.decode(done.stdout, type=Results)
    (run,) = results.runs
    assert (run.sent, run.answered, run.in_time, run.errors) == (20, 20, 20, {})
    assert len(run.client_cores) == 2
    assert run.latency_ms.keys() == {"p50", "p90", "p99", "p99.9", "p100"}
    assert (results.served.model, results.served.engine) == ("colours", "fp32")
    assert (results.images.count, results.images.mean_bytes) == (1, len(RED))
    assert run.server is not None
    assert set(run.server.stages) == {"decode", "queue", "infer", "total"}
    assert sum(run.server.batches.values()) == run.server.stages["infer"].count
    written = tmp_path / "out" / "load.json"
    assert msgspec.json.decode(written.read_bytes(), type=Results) == results


def test_a_closed_loop_keeps_its_number_in_flight(server):
    seen: list[State] = []
    big = encoded(Image.new("RGB", (224, 224)), "PNG")
    plan = LoadPlan(
        target=server.target, concurrency=4, seconds=1, images_per_request=2, warmup_seconds=0
    )
    report = run_load(plan, [big], watch=seen.append)
    assert report.answered >= 4
    assert report.images_per_second > 0
    assert {state.in_flight for state in seen} == {4}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_how_it_goes(monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    monkeypatch.setenv("COLUMNS", "120")
    plan = LoadPlan(target="127.0.0.1:1", rate=50, warmup_seconds=1, seconds=9)
    with Live() as live:
        live.watch(State(plan, seconds=5.0, images=200, failed=3, in_flight=7))
        shown = sys.stderr.getvalue()
    assert " 50% |" in shown
    assert "50 requests/s (poisson): 40.0 images/s, 7 in flight, 3 not answered" in shown


def test_what_the_server_refuses_is_counted_by_status(server):
    plan = LoadPlan(target=server.target, rate=10, seconds=0.5, images_per_request=33, **AT_ONCE)
    report = run_load(plan, [RED])
    assert (report.sent, report.answered, report.errors) == (5, 0, {"INVALID_ARGUMENT": 5})
    assert report.latency_ms == {}
    assert "the request has 33 images; at most 32 are taken" in report_text(report)


def test_images_that_could_not_be_used_are_no_throughput(server):
    report = run_load(LoadPlan(target=server.target, rate=10, seconds=0.5, **AT_ONCE), [b"text"])
    assert (report.answered, report.errors) == (5, {})
    assert report.image_errors == {"not_an_image": 5}
    assert "WARNING     5 images that were sent cannot be used (not_an_image)" in report_text(
        report
    )
    assert report.images_per_second == 0


@pytest.fixture
def held(tmp_path):
    """A server whose engine waits in a run while `tmp_path/hang` is there."""
    tiny_bundle(tmp_path / "models")
    control = ("--models", tmp_path / "models", "--control", tmp_path)
    with serving(*control, program=FAKE_SERVING) as server:
        (tmp_path / "hang").touch()
        yield server
        (tmp_path / "hang").unlink(missing_ok=True)


def test_an_answer_that_is_held_up_shows_in_all_that_were_due_meanwhile(held, tmp_path):
    """No coordinated omission: the engine stands still for the whole second of the load."""
    plan = LoadPlan(target=held.target, rate=20, seconds=1, slo_ms=100, **AT_ONCE)

    def let_go(state: State) -> None:
        if state.seconds > plan.seconds:
            (tmp_path / "hang").unlink(missing_ok=True)

    report = run_load(plan, [RED], watch=let_go)
    assert (report.sent, report.answered, report.in_time) == (20, 20, 0)
    assert report.latency_ms["p50"] >= 500
    assert report.latency_ms["p100"] >= 1000
    assert (report.answers.mean, report.goodput.mean) == (0, 0)  # none came within the window


def test_a_deadline_ends_what_is_not_answered(held):
    plan = LoadPlan(target=held.target, rate=10, seconds=0.5, timeout_seconds=0.5, **AT_ONCE)
    report = run_load(plan, [RED])
    assert (report.answered, report.failed) == (0, 5)
    assert report.errors.keys() <= {"DEADLINE_EXCEEDED", "NOT_SENT"}  # the latter if it was late


def test_a_client_process_that_is_killed_ends_the_run(held):
    plan = LoadPlan(target=held.target, rate=10, seconds=2, processes=2, **AT_ONCE)

    def kill(_: State) -> None:
        os.kill(children()[0], signal.SIGKILL)

    with pytest.raises(ServiceFailed, match="ended before its time"):
        run_load(plan, [RED], watch=kill)
    assert children() == []


def test_client_processes_do_not_outlive_who_started_them(held, tmp_path):
    command = (sys.executable, "-m", "packshot.cli", "load", "--target", held.target)
    (tmp_path / "red.jpg").write_bytes(RED)
    loading = subprocess.Popen(
        [*command, "--rate", "10", "--seconds", "600", "--processes", "2", tmp_path / "red.jpg"],
        cwd=ROOT,
    )
    until(lambda: len(children(loading.pid)) == 2)
    senders = children(loading.pid)
    loading.kill()
    loading.wait()
    until(lambda: not any(map(command_of, senders)))


def test_a_sweep_that_is_interrupted_keeps_the_rates_it_finished(server, tmp_path):
    command = (sys.executable, "-m", "packshot.cli", "load", "--target", server.target, "--sweep")
    (tmp_path / "red.jpg").write_bytes(RED)
    sweeping = subprocess.Popen(
        [*command, "--seconds", "0.5", "--warmup", "0.1", "--out", tmp_path, tmp_path / "red.jpg"],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
    )  # fmt: skip
    told = list(islice(sweeping.stderr, 3))
    os.killpg(sweeping.pid, signal.SIGINT)  # as a terminal does
    shown, rest = sweeping.communicate(timeout=TIMEOUT)
    assert sweeping.returncode == 130
    assert "Traceback" not in rest
    assert "WARNING the sweep did not come to its end" in shown
    kept = read_results(tmp_path)
    assert len(kept.sweep.runs) >= len(told)
    assert kept.sweep.cut_short == "it was interrupted"
    assert "the sweep did not come to its end" in (tmp_path / "load.html").read_text().lower()


def test_of_a_rate_that_was_measured_twice_the_second_one_counts():
    closed = report_of(plan_of(rate=None), tally_of([0.02] * 9), None)
    rate = report_of(plan_of(rate=50.0), tally_of([0.02] * 9), None)
    again = msgspec.structs.replace(rate, in_time=3)
    found = sweep_of([closed, closed, rate, again], "why")
    assert (found.points, found.cut_short) == ((again,), "why")


def children(parent: int | str = "self") -> list[int]:
    """Client processes that it started."""
    tasks = Path(f"/proc/{parent}/task").glob("*/children")
    found = [int(each) for task in tasks for each in task.read_text().split()]
    return [pid for pid in found if b"packshot.load.sender" in command_of(pid)]


def command_of(pid: int) -> bytes:
    """Empty once it has ended, also if nobody has taken note of it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except FileNotFoundError:
        return b""


def test_a_wrong_address_and_a_wrong_metrics_page_are_told_at_once(server):
    done = load_command("--target", "127.0.0.1:1")
    assert (done.returncode, "no answer from 127.0.0.1:1" in done.stderr) == (2, True)
    wrong = f"{server.http_url}/livez"
    done = load_command("--target", server.target, "--metrics-url", wrong)
    assert (done.returncode, f"{wrong} has no metrics of a packshot server" in done.stderr) == (
        2,
        True,
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--sweep", "--rate", 5), "leave --rate out"),
        (("--seconds", 0), "seconds is 0.0; it must be above 0"),
        (("--warmup", -1), "warmup_seconds is -1.0; it must be 0 or more"),
        (("--rate", "nan"), "rate is nan"),
        (("--rate", "inf"), "rate is inf; it must be above 0, and finite"),
        (("--warmup", "inf"), "warmup_seconds is inf"),
        (("--compare", "a", "b", "--sweep"), "--compare sends nothing"),
        (("--api", "open-inference"), "name one"),
        (("--concurrency", 3000), "concurrency is 3000; it must be 2048 or less"),
        (("nothing-there/*.jpg",), "no such file"),
    ],
)
def test_plans_without_sense_are_refused(server, capsys, options, told):
    assert main(["load", "--target", server.target, *map(str, options)]) == 2
    assert told in capsys.readouterr().err


def test_the_other_commands_need_no_load_tester(server):
    """hdrhistogram is in an extra of its own."""
    blocked = "import sys; sys.modules['hdrh'] = None; from packshot.cli import main; "
    model, load = (
        subprocess.run(
            [sys.executable, "-c", f"{blocked}raise SystemExit(main({arguments}))"],
            cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
        )
        for arguments in (["model", "--target", server.target], ["load"])
    )  # fmt: skip
    assert (model.returncode, load.returncode) == (0, 2)
    assert "pip install 'packshot[load]'" in load.stderr


def test_a_server_that_was_restarted_is_no_window(server, store):
    before = read_metrics(server.metrics_url)
    run_load(LoadPlan(target=server.target, rate=10, seconds=0.3, **AT_ONCE), [RED])
    with serving("--models", store) as fresh, pytest.raises(InvalidInput, match="restarted"):
        between(read_metrics(server.metrics_url), read_metrics(fresh.metrics_url), "colours")
    window = between(before, read_metrics(server.metrics_url), "colours")
    assert (window.images, window.dropped, window.refused) == (3, {}, {})


def test_a_server_whose_metrics_cannot_be_read_costs_no_result(server):
    gone = Source("http://127.0.0.1:1/metrics", "colours")
    plan = LoadPlan(target=server.target, rate=10, seconds=0.5, **AT_ONCE)
    report = run_load(plan, [RED], source=gone)
    assert (report.answered, report.server) == (5, None)
    assert "server_unseen" in [doubt.kind for doubt in report.doubts]


def plan_of(**changes: object) -> LoadPlan:
    return LoadPlan(**{"target": "127.0.0.1:1", "rate": 100.0, "seconds": 10.0, **changes})


def test_constant_arrivals_of_several_senders_are_evenly_spaced():
    plan = plan_of(arrivals="constant")
    dues = sorted(
        due for number in range(3) for due in due_times(plan, 5.0, 7.0, number=number, senders=3)
    )
    assert dues == pytest.approx(np.arange(200) / 100 + 5.0)


def test_poisson_arrivals_of_several_senders_have_the_rate_and_are_seeded():
    plan = plan_of()
    parts = [list(due_times(plan, 0.0, 200.0, number=n, senders=2)) for n in range(2)]
    again = list(due_times(plan, 0.0, 200.0, number=0, senders=2))
    assert parts[0] == again != parts[1]
    gaps = np.array([b - a for a, b in pairwise(sorted(parts[0] + parts[1]))])
    # 20,000 gaps of an exponential distribution: the deviation is as large as the mean.
    assert gaps.mean() == pytest.approx(0.01, rel=0.03)
    assert gaps.std() == pytest.approx(0.01, rel=0.03)
    assert list(due_times(plan_of(seed=1), 0.0, 200.0, number=0, senders=2)) != again


def test_only_the_window_counts_and_by_when_each_was_due():
    recorder = Recorder(Window(10.0, 20.0), slo_seconds=1.0)
    for due, answered in ((9.0, 10.5), (10.0, 10.5), (19.5, 21.0), (20.0, 20.1)):
        recorder.sent(due, due)
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
    plan = plan_of(rate=10, arrivals="constant", warmup_seconds=0.5, seconds=1.0, timeout_seconds=9)
    sender, begin = AtOnce(), time.monotonic() - 1.0
    run = Run(sender, Order(plan=plan, number=0, senders=1, begin=begin))  # type: ignore[arg-type]
    tally = asyncio.run(run.tally(lambda _: None))
    assert (tally.sent, tally.answered, tally.images_in_all) == (10, 10, 15)
    # Due half a second after the beginning, the first after the warm-up.
    for histogram in (decoded(tally.latency), decoded(tally.lag)):
        assert histogram.get_max_value() >= 0.499e6
    assert min(sender.allowed) <= 8.0
    assert len(tally.cpu_seconds) == 1


def test_generated_photographs_are_such_as_shops_have():
    made = photos(4)
    assert len(set(made)) == 4
    for one in made:
        assert 100_000 < len(one) < 260_000
        with open_image(one) as image:
            assert (image.format, min(image.size)) in {("JPEG", 800), ("JPEG", 900)}


def test_what_the_command_line_says_is_what_is_done(server, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no image")
    (tmp_path / "red.jpg").write_bytes(RED)
    for name, status in (("red.jpg", 0), ("text.jpg", 1)):
        done = load_command(
            "--target", server.target, tmp_path / name, "--rate", 4, "--arrivals", "constant",
            "--seconds", 0.5, "--warmup", 0.25, "--timeout", 7, "--slo-ms", 123, "--seed", 5,
            "--processes", 1, "--json",
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        plan = json.loads(done.stdout)["run"]["plan"]
        told = {"rate": 4, "arrivals": "constant", "seconds": 0.5, "warmup_seconds": 0.25}
        told |= {"timeout_seconds": 7, "slo_ms": 123, "seed": 5, "processes": 1}
        assert told.items() <= plan.items()


def tally_of(latencies: list[float], *, failed: int = 0, slo_seconds: float = 0.1) -> Tally:
    """Requests evenly due over ten seconds, each answered so many seconds later."""
    recorder = Recorder(Window(0.0, 10.0), slo_seconds=slo_seconds)
    for number, latency in enumerate(latencies):
        due = number * 10.0 / len(latencies)
        recorder.sent(due, due)
        recorder.answered(due, due + latency, images=1, image_errors={})
    for _ in range(failed):
        recorder.sent(0.0, 0.0)
        recorder.not_answered(0.0, "RESOURCE_EXHAUSTED")
    return recorder.tally(cpu_seconds=1.0)


def test_several_processes_add_up_to_one():
    random = np.random.default_rng(0)
    parts = [list(random.exponential(0.05, 300)) for _ in range(3)]
    whole = merged(tally_of(part) for part in parts)
    assert (whole.sent, whole.answered, len(whole.cpu_seconds)) == (900, 900, 3)
    exact = np.percentile(np.concatenate(parts), 99) * 1000
    report = report_of(plan_of(), whole, None)
    assert report.latency_ms["p99"] == pytest.approx(exact, rel=0.02)
    low, high = report.latency_intervals_ms["p99"]
    assert low < report.latency_ms["p99"] < high


def test_a_client_that_is_the_bottleneck_is_told():
    recorder = Recorder(Window(0.0, 10.0), slo_seconds=1.0)
    for due in range(10):
        recorder.sent(due, due + 0.2)
        recorder.answered(due, due + 0.3, images=1, image_errors={})
    recorder.not_answered(1.0, "NOT_SENT")
    recorder.not_answered(1.0, "TOO_MANY_IN_FLIGHT")
    busy = report_of(plan_of(), recorder.tally(cpu_seconds=9.5), None)
    assert [doubt.kind for doubt in busy.doubts] == [
        "client_busy", "sent_late", "not_sent", "too_many",
    ]  # fmt: skip
    assert "95%" in busy.doubts[0].text
    assert "200 ms" in busy.doubts[1].text
    assert report_of(plan_of(), tally_of([0.01] * 100), None).doubts == ()


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
def test_every_image_is_sent(count, size, requests):
    images = [bytes([number]) * 10 for number in range(count)]
    made = requests_of(plan_of(images_per_request=size), images)
    parsed = [pb.ClassifyRequest.FromString(one) for one in made]
    assert [len(one.images) for one in parsed] == [size] * requests
    assert {image.encoded for one in parsed for image in one.images} == set(images)


class Queue:
    """Answers in 20 ms what it can, 80 images a second, and refuses the rest."""

    CAPACITY = 80.0
    SECONDS = 0.02

    def __init__(self) -> None:
        self.plans: list[LoadPlan] = []

    async def run(self, plan: LoadPlan) -> LoadReport:
        self.plans.append(plan)
        rate = plan.rate or min(self.CAPACITY, plan.concurrency / self.SECONDS)
        answered = round(min(rate, self.CAPACITY) * plan.seconds)
        failed = round(rate * plan.seconds) - answered
        slo_seconds = (plan.slo_ms or float("inf")) / 1000
        tally = tally_of([self.SECONDS] * answered, failed=failed, slo_seconds=slo_seconds)
        return report_of(plan, tally, None)


def swept(**changes: object):
    queue, told = Queue(), []
    plan = plan_of(rate=None, **changes)
    return asyncio.run(sweep(queue, plan, told.append)), told  # type: ignore[arg-type]


def test_a_sweep_finds_saturation_and_the_highest_rate_within_the_slo():
    found, told = swept(slo_ms=100)
    assert (found.alone.plan.concurrency, found.alone.plan.rate) == (1, None)
    assert found.saturation == pytest.approx(80, rel=0.02)
    # 99 % of the requests: at 80.8 a second one in a hundred is refused.
    assert found.within_slo == pytest.approx(80, rel=0.05)
    assert found.kept_up_with == pytest.approx(80, rel=0.06)
    rates = [run.plan.rate for run in found.points]
    assert rates == sorted(rates)
    assert len(told) == len(found.runs) > 10


def test_a_rate_that_fails_below_one_that_passes_is_measured_again():
    class Disturbed(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            if len(self.plans) != 4:  # the second step of the ladder, the first time
                return report
            return msgspec.structs.replace(report, in_time=report.in_time // 2)

    queue = Disturbed()
    found = asyncio.run(sweep(queue, plan_of(rate=None, slo_ms=100), lambda _: None))
    assert queue.plans[3] in queue.plans[4:]
    assert found.within_slo == pytest.approx(80, rel=0.05)


def test_a_sweep_without_an_slo_climbs_the_ladder_only():
    found, _ = swept()
    assert (len(found.points), found.within_slo) == (8, None)


def test_a_sweep_climbs_on_where_its_requests_in_flight_do_not_saturate_the_server():
    class Far(Queue):
        CAPACITY = 400.0
        SECONDS = 0.3

    found = asyncio.run(sweep(Far(), plan_of(rate=None, slo_ms=1000), lambda _: None))
    assert found.closed.images_per_second == pytest.approx(16 / 0.3, rel=0.05)
    assert found.saturation == pytest.approx(400, rel=0.05)
    assert found.within_slo == pytest.approx(400, rel=0.05)


def test_a_sweep_over_some_files_that_are_no_images_knows_what_the_server_keeps_up_with():
    class Half(Queue):
        async def run(self, plan: LoadPlan) -> LoadReport:
            report = await super().run(plan)
            half = msgspec.structs.replace(report.answers, mean=report.answers.mean / 2)
            errors = {"not_an_image": report.answered // 2}
            return msgspec.structs.replace(report, answers=half, image_errors=errors)

    found = asyncio.run(sweep(Half(), plan_of(rate=None), lambda _: None))
    assert found.kept_up_with == pytest.approx(80, rel=0.06)


def test_a_sweep_that_never_meets_its_slo_ends_where_it_could_not_tell_any_more():
    found, told = swept(slo_ms=10)
    assert found.within_slo is None
    assert found.points[0].plan.rate * 10 >= 50
    assert len(told) < 16


def test_senders_stay_for_the_next_plan(server):
    async def two_plans() -> list[int]:
        plan = LoadPlan(target=server.target, rate=20, seconds=0.3, **AT_ONCE)
        async with senders(plan, [RED], Connection(target=server.target)) as clients:
            before = children()
            reports = [await clients.run(plan) for _ in range(2)]
            assert children() == before
        return [report.answered for report in reports]

    assert asyncio.run(two_plans()) == [6, 6]
    assert children() == []


@pytest.mark.parametrize(
    "spoken", [("--pixels",), ("--api", "open-inference"), ("--api", "open-inference", "--pixels")]
)
def test_files_and_pixels_over_both_apis(server, tmp_path, spoken):
    (tmp_path / "red.jpg").write_bytes(RED)
    done = load_command(
        tmp_path, "--target", server.target, "--model", "colours", *spoken, "--rate", 10,
        "--seconds", 0.5, "--warmup", 0, "--arrivals", "constant", "--json",
        "--images-per-request", 2,
    )  # fmt: skip
    results = json.loads(done.stdout)
    run = results["run"]
    assert (run["answered"], run["errors"], run["image_errors"]) == (5, {}, {}), done.stderr
    assert (results["served"]["version"], results["served"]["crop"]) == ("1", 224)
    assert run["images_in_all"] == 10
