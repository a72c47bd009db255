"""The load tester against real servers: what becomes of requests is what it counts."""

import asyncio
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from itertools import islice

import msgspec
import pytest
from load_programs import (
    LOAD,
    RED,
    children,
    command_of,
    load_command,
)
from load_records import load_report
from PIL import Image
from processes import FAKE_SERVING, ROOT, TIMEOUT, serving, until
from tiny import encoded, tiny_bundle

from packshot.channel import Connection
from packshot.cli import main
from packshot.client import MAX_MESSAGE_BYTES
from packshot.errors import InvalidInput, ServiceFailed
from packshot.image import open_image
from packshot.load import LoadPlan, LoadReport, Source, run_load
from packshot.load.command import Live
from packshot.load.observed import between, read_metrics
from packshot.load.pictures import photos
from packshot.load.results import Results, read_results
from packshot.load.senders import State, senders
from packshot.load.text import report_text

AT_ONCE = {"warmup_seconds": 0.0, "arrivals": "constant"}


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


def test_a_closed_loop_has_no_more_in_flight_than_its_number(server):
    seen: list[State] = []
    big = encoded(Image.new("RGB", (224, 224)), "PNG")
    plan = LoadPlan(
        target=server.target, concurrency=4, seconds=1, images_per_request=2, warmup_seconds=0
    )
    report = run_load(plan, [big], watch=seen.append)
    assert report.answered >= 4
    assert report.images_per_second > 0
    assert 0 < max(state.in_flight for state in seen) <= 4  # fewer while one goes on to the next


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("rate", "state", "shown"),
    [
        (50.0, {"images": 200, "failed": 3, "in_flight": 7},
         "3 not answered, 40.0 images/s, 7 in flight; 50 requests/s"),
        (50.0, {"images": 200, "failed": 0, "in_flight": 7},
         "40.0 images/s, 7 in flight; 50 requests/s (poisson)"),
        (5000.0, {"images": 12_345, "failed": 23_456, "in_flight": 2048, "stopping": True},
         "stopping: 23456 not answered, 2469.0 images/s, 2048 in flight"),
    ],
)  # fmt: skip
def test_a_terminal_of_80_columns_shows_how_it_goes(monkeypatch, rate, state, shown):
    monkeypatch.setattr(sys, "stderr", Terminal())
    plan = LoadPlan(target="127.0.0.1:1", rate=rate, warmup_seconds=1, seconds=9)
    with Live() as live:
        live.watch(State(plan, seconds=5.0, **state))
        line = sys.stderr.getvalue().split("\r")[-1]
    assert line.startswith(" 50% |")
    assert shown in line[:80], "tqdm cuts the rest"


def test_elsewhere_a_rate_of_a_sweep_has_a_line_in_images_as_it_was_asked_for(capsys):
    with Live() as live:
        live.tell(load_report([40.0] * 130, rate=10.0, images_per_request=4))
    assert capsys.readouterr().err.startswith("40.0/s: 52.0 images/s in time, p99 40 ms, 0 of 130")


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
    assert "WARNING     5 images of those sent cannot be used (not_an_image)" in report_text(report)
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
    (tmp_path / "red.jpg").write_bytes(RED)
    loading = subprocess.Popen(
        [*LOAD, "--target", held.target, "--rate", "10", "--seconds", "600", "--processes", "2",
         tmp_path / "red.jpg"],
        cwd=ROOT,
    )  # fmt: skip
    until(lambda: len(children(loading.pid)) == 2)
    senders = children(loading.pid)
    loading.kill()
    loading.wait()
    until(lambda: not any(map(command_of, senders)))


def test_a_sweep_whose_server_dies_says_so_and_tries_no_further(store, tmp_path, interruptible):
    (tmp_path / "red.jpg").write_bytes(RED)
    with serving("--models", store) as server:
        sweeping = interruptible(
            server, "--sweep", "--slo-ms", 5000, "--seconds", 0.5, "--warmup", 0,
            "--out", tmp_path, tmp_path / "red.jpg",
        )  # fmt: skip
        list(islice(sweeping.stderr, 3))
        server.stop(signal.SIGKILL)
        shown, _ = sweeping.communicate(timeout=TIMEOUT)
    assert sweeping.returncode == 1
    *_, last = read_results(tmp_path).sweep.points
    assert (last.answered, last.faults.keys()) == (0, {"UNAVAILABLE"})
    page = (tmp_path / "load.html").read_text()
    for told in (shown, page):
        assert "he sweep did not come to its end, rates are missing: at " in told
        assert "requests failed, which is no overload: " in told
        assert " UNAVAILABLE (" in told
    assert re.search(r"^not answered: \d+ UNAVAILABLE \(", shown, re.MULTILINE)
    assert "The client kept up" not in page


def test_a_sweep_whose_requests_are_wrong_ends_after_its_loops(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    done = load_command(
        tmp_path, "--target", server.target, "--sweep", "--seconds", 0.3, "--warmup", 0,
        "--images-per-request", 33,
    )  # fmt: skip
    assert done.returncode == 1
    assert "no request was answered: " in done.stdout
    assert "INVALID_ARGUMENT (the request has 33 images; at most 32 are taken)" in done.stdout
    assert "saturates" not in done.stdout


def test_a_sweep_without_an_answer_in_its_window_found_no_saturation(store, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    slow = ("--models", store, "--control", tmp_path, "--run-ms", 300)
    with serving(*slow, program=FAKE_SERVING) as server:
        done = load_command(
            tmp_path / "red.jpg", "--target", server.target, "--sweep", "--seconds", 0.01,
            "--warmup", 0, "--out", tmp_path,
        )  # fmt: skip
    assert done.returncode == 1
    assert "no answer came while the window was open: give it more --seconds" in done.stdout
    assert "saturates" not in done.stdout
    found = read_results(tmp_path).sweep
    assert (found.points, found.closed.answered > 0) == ((), True)
    assert "0.0 images/s</b><span>saturation" not in (tmp_path / "load.html").read_text()


def test_a_message_that_is_too_large_is_not_refused_for_overload(server):
    """The server takes no more than 64 MiB, and so much the client does not send either."""
    plan = LoadPlan(target=server.target, rate=10, seconds=0.2, images_per_request=4, **AT_ONCE)
    report = run_load(plan, [bytes(MAX_MESSAGE_BYTES // 4)])  # and a few bytes around them
    assert (report.errors, report.refusal_ms) == ({"MESSAGE_TOO_LARGE": 2}, {})


def test_a_sweep_comes_to_its_end_and_is_compared_with_itself(server, tmp_path, capsys):
    (tmp_path / "red.jpg").write_bytes(RED)
    done = load_command(
        tmp_path / "red.jpg", "--target", server.target, "--sweep", "--slo-ms", 5000,
        "--seconds", 0.3, "--warmup", 0, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "saturates at" in done.stdout
    found = read_results(tmp_path).sweep
    assert (len(found.points) >= 8, found.cut_short) == (True, None)
    rates = [run.plan.rate for run in found.points]
    assert rates == sorted(rates)
    assert sum(run.answered for run in found.runs) > 100
    assert main(["load", "--compare", str(tmp_path), str(tmp_path)]) == 0
    assert "kept up with, images/s" in capsys.readouterr().out


def test_a_server_that_was_restarted_is_no_window(server, store):
    before = read_metrics(server.metrics_url)
    run_load(LoadPlan(target=server.target, rate=10, seconds=0.3, **AT_ONCE), [RED])
    with serving("--models", store) as fresh, pytest.raises(InvalidInput, match="restarted"):
        between(read_metrics(server.metrics_url), read_metrics(fresh.metrics_url), "colours")
    window = between(before, read_metrics(server.metrics_url), "colours")
    assert (window.images, window.dropped, window.refused) == (3, {}, {})


def test_the_metrics_of_another_server_are_not_believed(server, store):
    plan = LoadPlan(target=server.target, rate=40, seconds=1, **AT_ONCE)
    with serving("--models", store) as other:
        strange = run_load(plan, [RED], source=Source(other.metrics_url, "colours"))
    (doubt,) = (doubt for doubt in strange.doubts if doubt.kind == "server_unseen")
    assert "counted none of this model's images: check --metrics-url" in doubt.text
    assert (strange.answered, strange.server) == (40, None)
    report = run_load(plan, [RED], source=Source(server.metrics_url, "colours"))
    assert report.server.images > 0


def test_a_server_whose_metrics_cannot_be_read_costs_no_result(server):
    gone = Source("http://127.0.0.1:1/metrics", "colours")
    plan = LoadPlan(target=server.target, rate=10, seconds=0.5, **AT_ONCE)
    report = run_load(plan, [RED], source=gone)
    assert (report.answered, report.server) == (5, None)
    assert "server_unseen" in [doubt.kind for doubt in report.doubts]


def test_generated_photographs_are_such_as_shops_have():
    made = photos(4)
    assert len(set(made)) == 4
    for one in made:
        assert 100_000 < len(one) < 260_000
        with open_image(one) as image:
            assert (image.format, min(image.size)) in {("JPEG", 800), ("JPEG", 900)}


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


def test_a_server_that_comes_back_is_found_at_once_also_one_that_is_slow_to_say_hello(server):
    """At gRPC's own pace the fifth connection is tried after nine seconds, here all after two."""
    turned_away = 6
    connections, ended = itertools.count(), asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if next(connections) < turned_away:
            writer.close()
            return
        host, port = server.target.split(":")
        back, forth = await asyncio.open_connection(host, port)
        await asyncio.gather(pump(reader, forth), pump(back, writer, hello_seconds=0.5))
        ended.set()

    async def pump(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, hello_seconds: float = 0.0
    ) -> None:
        await asyncio.sleep(hello_seconds)
        while content := await reader.read(65536):
            writer.write(content)
        writer.close()

    async def loaded() -> LoadReport:
        balancer = await asyncio.start_server(answer, "127.0.0.1", 0)
        host, port = balancer.sockets[0].getsockname()
        plan = LoadPlan(target=f"{host}:{port}", rate=20, seconds=6, processes=1, **AT_ONCE)
        async with senders(plan, [RED], Connection(target=plan.target)) as clients:
            report = await clients.run(plan)
        if report.answered:
            await ended.wait()
        balancer.close()
        return report

    report = asyncio.run(loaded())
    assert report.errors.keys() == {"UNAVAILABLE"}
    assert report.answered > 0


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
