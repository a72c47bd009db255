"""The load tester: against real servers, and its arithmetic alone."""

import asyncio
import fcntl
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import termios
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from PIL import Image
from processes import FAKE_SERVING, ROOT, TIMEOUT, serving, until
from tiny import PURE, encoded, jpeg, tiny_bundle

from packshot.channel import Connection
from packshot.cli import main
from packshot.client import MAX_MESSAGE_BYTES
from packshot.errors import InvalidInput, ServiceFailed
from packshot.image import open_image
from packshot.load import LoadPlan, LoadReport, Source, command, run_load
from packshot.load.command import Live
from packshot.load.observed import between, read_metrics
from packshot.load.pictures import photos
from packshot.load.results import Results, read_results
from packshot.load.senders import State, senders
from packshot.load.text import report_text

RED = jpeg(PURE["red"])
LOAD = (sys.executable, "-m", "packshot.cli", "load")
AT_ONCE = {"warmup_seconds": 0.0, "arrivals": "constant"}


def load_command(*arguments: object, **environment: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [*LOAD, *map(str, arguments)],
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_interrupted_keeps_the_rates_it_finished(server, tmp_path, sent):
    (tmp_path / "red.jpg").write_bytes(RED)
    sweeping = interruptible(
        server, "--sweep", "--seconds", 0.5, "--warmup", 0.1, "--out", tmp_path,
        tmp_path / "red.jpg",
    )  # fmt: skip
    told = list(islice(sweeping.stderr, 3))
    os.killpg(sweeping.pid, sent)  # as a terminal does
    shown, rest = sweeping.communicate(timeout=TIMEOUT)
    assert sweeping.returncode == 130
    assert "Traceback" not in rest
    assert "WARNING the sweep did not come to its end" in shown
    kept = read_results(tmp_path)
    assert len(kept.sweep.runs) >= len(told)
    assert kept.sweep.cut_short == "it was interrupted"
    assert "the sweep did not come to its end" in (tmp_path / "load.html").read_text().lower()


def test_a_sweep_whose_server_dies_says_so_and_tries_no_further(store, tmp_path):
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("amount", [("--rate", 50), ("--concurrency", 2)])
def test_a_run_that_is_interrupted_reports_what_it_counted(server, tmp_path, amount, sent):
    (tmp_path / "red.jpg").write_bytes(RED)
    before = server.metric("packshot_images_total")
    loading = interruptible(
        server, *amount, "--warmup", 0, "--seconds", 600, "--out", tmp_path, tmp_path / "red.jpg",
        "--metrics-url", server.metrics_url,
    )  # fmt: skip
    until(lambda: server.metric("packshot_images_total") > before + 20)
    os.killpg(loading.pid, sent)
    shown, rest = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, "Traceback" in rest) == (130, False)
    assert re.search(r"WARNING     it was stopped after \d+\.\d s of 600 s", shown)
    run = read_results(tmp_path).run
    assert 0 < run.stopped_after < 600
    assert run.answered == run.sent > 20
    # Those that were in flight at its end came after the window.
    assert 0 < run.answers.mean * run.stopped_after < run.answered + 0.5
    assert run.server.images > 0
    assert run.errors == {}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_in_the_background_reports_what_it_counted_though_it_is_ended_twice(
    server, tmp_path, sent
):
    """A shell lets what it runs in the background ignore Ctrl-C; `timeout` sends its signal twice,
    and so does a shell whose terminal goes away."""
    (tmp_path / "red.jpg").write_bytes(RED)
    before = server.metric("packshot_images_total")
    loading = interruptible(
        server, "--rate", 50, "--warmup", 0, "--seconds", 600, "--out", tmp_path,
        tmp_path / "red.jpg", ignored="INT",
    )  # fmt: skip
    until(lambda: server.metric("packshot_images_total") > before + 20)
    loading.send_signal(sent)
    until(lambda: not (waiting_signals(loading.pid) & {sent}))
    loading.send_signal(sent)
    shown, rest = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, "Traceback" in rest) == (130, False)
    assert "WARNING     it was stopped after" in shown
    assert read_results(tmp_path).run.answered > 20


def test_a_run_whose_terminal_goes_away_writes_what_it_counted(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    before = server.metric("packshot_images_total")
    terminal, inside = os.openpty()
    loading = subprocess.Popen(
        [*LOAD, "--target", server.target, "--seconds", "600", "--warmup", "0",
         "--out", tmp_path, tmp_path / "red.jpg"],
        cwd=ROOT, stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    )  # fmt: skip
    os.close(inside)
    until(lambda: server.metric("packshot_images_total") > before + 20)
    os.close(terminal)
    loading.wait(TIMEOUT)
    assert read_results(tmp_path).run.answered > 20


def test_what_nohup_asks_for_is_done(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    before = server.metric("packshot_images_total")
    loading = interruptible(server, "--seconds", 1, tmp_path / "red.jpg", ignored="HUP")
    until(lambda: server.metric("packshot_images_total") > before + 20)
    loading.send_signal(signal.SIGHUP)
    shown, _ = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, "it was stopped" in shown) == (0, False)


def test_ctrl_c_before_anything_is_counted_leaves_nothing(server, tmp_path):
    before = server.metric("packshot_images_total")
    loading = interruptible(server, "--warmup", 600, "--out", tmp_path / "out")
    until(lambda: server.metric("packshot_images_total") > before)
    os.killpg(loading.pid, signal.SIGINT)
    shown, rest = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, shown, "Traceback" in rest) == (130, "", False)
    assert list((tmp_path / "out").iterdir()) == []


def interruptible(server, *options: object, ignored: str = "") -> "subprocess.Popen[str]":
    """As a terminal starts it: in a process group of its own, which Ctrl-C is for."""
    shell = ("sh", "-c", f'trap "" {ignored}; exec "$@"', "sh") if ignored else ()
    return subprocess.Popen(
        [*shell, *LOAD, "--target", server.target, *map(str, options)],
        cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
    )  # fmt: skip


def test_a_message_that_is_too_large_is_not_refused_for_overload(server):
    """The server takes no more than 64 MiB, and so much the client does not send either."""
    plan = LoadPlan(target=server.target, rate=10, seconds=0.2, images_per_request=4, **AT_ONCE)
    report = run_load(plan, [bytes(MAX_MESSAGE_BYTES // 4)])  # and a few bytes around them
    assert (report.errors, report.refusal_ms) == ({"MESSAGE_TOO_LARGE": 2}, {})


def test_requests_that_cannot_be_sent_are_refused_before_they_are_made(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    options = ("--target", server.target, "--images-per-request", 2_000_000_000)
    done = load_command(*options, tmp_path / "red.jpg")
    sizes = f"{2_000_000_000 * len(RED)} bytes; a request has at most {MAX_MESSAGE_BYTES}: send"
    assert (done.returncode, sizes in done.stderr) == (2, True)


def test_an_image_that_has_no_pixels_is_named(server, tmp_path):
    (tmp_path / "a.jpg").write_bytes(RED)
    (tmp_path / "cut.jpg").write_bytes(RED[: len(RED) // 2])
    done = load_command("--target", server.target, "--pixels", tmp_path)
    assert done.returncode == 2
    assert f"packshot: {tmp_path}/cut.jpg: damaged JPEG image" in done.stderr


@pytest.mark.parametrize("load", [("--concurrency", 2), ("--sweep",)])
def test_results_are_written_though_nobody_reads_what_is_printed(server, tmp_path, load):
    (tmp_path / "red.jpg").write_bytes(RED)
    loading = interruptible(
        server, *load, "--seconds", 0.3, "--warmup", 0, "--out", tmp_path, tmp_path / "red.jpg"
    )
    loading.stdout.close()
    loading.stderr.close()
    assert loading.wait(TIMEOUT) == 1
    assert read_results(tmp_path).runs[-1].answered > 0
    assert (tmp_path / "load.html").exists()


def test_without_a_standard_error_nothing_else_is_printed_in_its_place(server, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    told = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", *LOAD, "--target", server.target, "--seconds", "0.3",
         "--json", "--out", tmp_path, tmp_path / "red.jpg"],
        cwd=ROOT, stdout=subprocess.PIPE, timeout=TIMEOUT, check=True,
    ).stdout  # fmt: skip
    assert msgspec.json.decode(told, type=Results) == read_results(tmp_path)


def test_the_name_of_a_source_may_be_no_utf_8(server, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfcn"))
    folder.mkdir()
    (folder / "red.jpg").write_bytes(RED)
    done = load_command(
        folder, "--target", server.target, "--seconds", 0.3, "--warmup", 0, "--out", tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert read_results(tmp_path).images.source == f"{tmp_path}/gr\\xfcn"


def test_a_folder_that_takes_no_files_is_told_before_the_load(server, tmp_path):
    before = server.metric("packshot_images_total")
    (tmp_path / "file").touch()
    for folder in (Path("/proc"), tmp_path / "file"):
        done = load_command("--target", server.target, "--out", folder)
        assert (done.returncode, f"{folder}: results cannot be written" in done.stderr) == (2, True)
    assert server.metric("packshot_images_total") == before


def test_a_large_folder_is_sampled_evenly(tmp_path, monkeypatch, capsys):
    for number in range(12):
        (tmp_path / f"{number:02}.jpg").write_bytes(bytes([number]))
    monkeypatch.setattr(command, "MOST_IMAGES", 4)
    chosen = [(str(tmp_path / f"{n:02}.jpg"), bytes([n])) for n in (0, 3, 6, 9)]
    assert command._images([str(tmp_path)]) == chosen
    assert "4 of 12 images are sent in turn" in capsys.readouterr().err


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


def waiting_signals(pid: int) -> set[int]:
    """That it was sent and has not been told of."""
    status = Path(f"/proc/{pid}/status").read_text()
    bits = int(status.split("ShdPnd:")[1].split()[0], 16)
    return {number for number in signal.valid_signals() if bits >> (number - 1) & 1}


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
        (("--rate", 1e300), "rate is 1e+300; it must be 100000 or less: send from more machines"),
        (("--rate", "inf"), "rate is inf; it must be above 0, and finite"),
        (("--warmup", "inf"), "warmup_seconds is inf"),
        (("--compare", "a", "b", "--sweep"), "--compare sends nothing"),
        (("--compare", "a", "b", "c.jpg", "--slo-ms", 5), "leave images, --slo-ms out"),
        (("--compare", "a", "b", "--rate", 0), "leave --rate out"),
        (
            (
                "--compare",
                "a",
                "b",
                "--pixels",
                "--images-per-request",
                2,
                "--seconds",
                3,
                "--warmup",
                0,
                "--processes",
                3,
                "--api",
                "open-inference",
            ),
            "leave --seconds, --warmup, --processes, --images-per-request, --pixels, --api out",
        ),
        (("--compare", "nothing-there", "b"), "nothing-there: no such file"),
        (("--rate", 5, "--concurrency", 4), "leave --concurrency out, or --rate"),
        (("--arrivals", "constant"), "give --rate or --sweep"),
        (("--seed", 0), "give --rate or --sweep"),
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


def test_what_the_command_line_says_is_what_is_done(server, tmp_path):
    (tmp_path / "text.jpg").write_bytes(b"no image")
    not_utf8 = "caf\udce9.jpg"  # as Python reads such a name from the disk
    (tmp_path / not_utf8).write_bytes(RED)
    for name, status in ((not_utf8, 0), ("text.jpg", 1)):
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
