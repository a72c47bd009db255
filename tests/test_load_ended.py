"""A load that is ended before its time, by whom and however: what it counted is reported."""

import fcntl
import os
import re
import signal
import subprocess
import termios
from itertools import islice

import pytest
from load_programs import LOAD, RED, waiting_signals
from processes import FAKE_SERVING, ROOT, TIMEOUT, serving, until

from packshot.load.results import read_results


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_sweep_that_is_interrupted_keeps_the_rates_it_finished(
    server, tmp_path, sent, interruptible
):
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


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("amount", [("--rate", 50), ("--concurrency", 2)])
def test_a_run_that_is_interrupted_reports_what_it_counted(
    server, tmp_path, amount, sent, interruptible
):
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
    server, tmp_path, sent, interruptible
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


def test_a_second_signal_gives_up_what_is_not_answered(store, tmp_path, interruptible):
    (tmp_path / "red.jpg").write_bytes(RED)
    hung = ("--models", store, "--control", tmp_path, "--lanes", 1, "--hang-seconds", 600)
    with serving(*hung, program=FAKE_SERVING) as server:
        (tmp_path / "hang").touch()
        loading = interruptible(
            server, "--rate", 20, "--warmup", 0, "--seconds", 600, "--timeout", 600,
            "--out", tmp_path, tmp_path / "red.jpg",
        )  # fmt: skip
        until(lambda: server.metric("packshot_images_in_progress") > 4)
        for sent in (signal.SIGINT, signal.SIGTERM):  # two of a kind at once may count as one
            os.killpg(loading.pid, sent)
        shown, rest = loading.communicate(timeout=TIMEOUT)
        (tmp_path / "hang").unlink()
    assert (loading.returncode, "Traceback" in rest) == (130, False)
    run = read_results(tmp_path).run
    assert (run.answered, run.errors) == (0, {"GIVEN_UP": run.sent})
    assert f"{run.sent} requests were given up before the deadline" in " ".join(shown.split())


def test_what_nohup_asks_for_is_done(server, tmp_path, interruptible):
    (tmp_path / "red.jpg").write_bytes(RED)
    before = server.metric("packshot_images_total")
    loading = interruptible(server, "--seconds", 1, tmp_path / "red.jpg", ignored="HUP")
    until(lambda: server.metric("packshot_images_total") > before + 20)
    loading.send_signal(signal.SIGHUP)
    shown, _ = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, "it was stopped" in shown) == (0, False)


def test_ctrl_c_before_anything_is_counted_leaves_nothing(server, tmp_path, interruptible):
    before = server.metric("packshot_images_total")
    loading = interruptible(server, "--warmup", 600, "--out", tmp_path / "out")
    until(lambda: server.metric("packshot_images_total") > before)
    os.killpg(loading.pid, signal.SIGINT)
    shown, rest = loading.communicate(timeout=TIMEOUT)
    assert (loading.returncode, shown, "Traceback" in rest) == (130, "", False)
    assert list((tmp_path / "out").iterdir()) == []
