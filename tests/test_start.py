"""Starts: those that fail say why without a traceback, the others listen where they are told to."""

import signal
import socket
import subprocess
import sys

import pytest
from processes import (
    FAKE_SERVING,
    ROOT,
    TIMEOUT,
    environment,
    page,
    program,
    serving,
    starting,
    until,
)
from tiny import PURE, colour_network, jpeg, tiny_bundle

from packshot import Client
from packshot.bundle import sha256_of


def refused_to_start(*options: object) -> str:
    done = program("serving", "--port", 0, "--http-port", 0, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_start_without_a_bundle(tmp_path):
    assert "run `make export`" in refused_to_start("--models", tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no model in" in refused_to_start("--models", tmp_path / "empty")


def test_start_with_an_unknown_model(store):
    message = refused_to_start("--models", store, "--model", "shoes")
    assert "no model 'shoes'" in message
    assert "colours" in message


def test_start_with_a_damaged_bundle(store):
    model = store / "colours" / "1" / "model.onnx"
    before = sha256_of(model)
    model.write_bytes(model.read_bytes() + b"!")
    assert before[:12] in refused_to_start("--models", store)


def test_start_with_no_usable_engine(tmp_path):
    tiny_bundle(tmp_path, int8=colour_network(sign=-1))
    message = refused_to_start("--models", tmp_path, "--engines", "int8,tensorrt")
    assert "golden samples differ" in message
    assert "tensorrt: not in the bundle: it was not exported" in message
    # Nobody asked for a model by name: each is said with what is wrong with it.
    tiny_bundle(tmp_path, "shoes", int8=colour_network(sign=-1))
    last_line = refused_to_start("--models", tmp_path, "--engines", "int8").splitlines()[-1]
    assert last_line.count("golden samples differ") == 2
    assert last_line.startswith("packshot: cannot serve: none of the models in")


@pytest.mark.parametrize("option", ["--port", "--http-port"])
def test_start_on_a_taken_port(store, option):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        message = refused_to_start("--models", store, option, port)
    assert f"{option} {port}" in message


@pytest.mark.parametrize("host", ["", "two..dots", "a" * 64])
def test_start_on_a_host_that_cannot_be(store, host):
    message = refused_to_start("--models", store, "--host", host)
    assert f"--host is {host!r}, which cannot be looked up; give an address of this" in message


def test_start_with_traces_to_nowhere(store):
    assert "--otlp-endpoint is ''; it must be like" in refused_to_start(
        "--models", store, "--otlp-endpoint", ""
    )


@pytest.mark.parametrize("host", ["::1", "[::1]", "::"])
def test_ipv6(store, host):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with serving("--models", store, "--host", host) as server:
        assert server.target.startswith("[::")
        port = server.target.rpartition(":")[2]
        with Client(f"[::1]:{port}", timeout_seconds=TIMEOUT) as client:
            assert client.classify(jpeg(PURE["red"]))[0].label == "red"
        http = server.http_url.replace("[::]", "[::1]")
        assert page(f"{http}/readyz")[0] == 200


def test_start_with_values_out_of_range(store):
    assert "--max-batch is 0; it must be from 1 to 256" in refused_to_start(
        "--models", store, "--max-batch", 0
    )
    assert "could never be taken" in refused_to_start("--models", store, "--max-queued-images", 8)


def test_a_folder_renamed_to_another_version_is_refused(store):
    (store / "colours" / "1").rename(store / "colours" / "7")
    assert "7 holds version 1 of 'colours'" in refused_to_start("--models", store)


def test_a_stop_while_loading_waits_for_no_thread(store, tmp_path):
    (tmp_path / "closed").touch()
    options = ("--models", store, "--engines", "fp32", "--control", tmp_path)
    with starting(*options, program=FAKE_SERVING) as server:
        until(lambda: f"loading {store}" in server.log)
        server.process.send_signal(signal.SIGHUP)  # told to look again, not to die
        assert server.stop() == 0
        assert "stopped while loading" in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_start_that_failed_exits_1_whatever_signals_come(tmp_path, number):
    tiny_bundle(tmp_path, int8=colour_network(sign=-1))
    with starting("--models", tmp_path, "--engines", "int8") as server:
        until(lambda: "cannot serve" in server.log)
        assert server.pester(number) == 1
        assert "Traceback" not in server.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_wrong_settings_exit_1_whatever_signals_come(number):
    with starting("--models", "none", "--max-batch", 0) as server:
        until(lambda: "cannot serve" in server.log)
        assert server.pester(number) == 1


FIRST_OF_ITS_CONTAINER = ("unshare", "--user", "--map-root-user", "--pid", "--fork")


@pytest.fixture
def signalled(tmp_path):
    """Runs a server that signals itself in its imports, and exits with 1 if it survives that."""

    def run(
        *options: str, numbers: tuple[int, ...], before: tuple[str, ...] = ()
    ) -> subprocess.CompletedProcess[str]:
        kills = "".join(f"os.kill(os.getpid(), {number:d})\n" for number in numbers)
        (tmp_path / "uvloop.py").write_text(f"import os\n{kills}raise SystemExit('survived')\n")
        return subprocess.run(
            [*before, sys.executable, "-m", "serving", "--models", "none", *options],
            cwd=ROOT, env=environment(PYTHONPATH=str(tmp_path)),
            text=True, capture_output=True, timeout=TIMEOUT,
        )  # fmt: skip

    return run


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_in_the_imports_is_a_clean_one(signalled, number):
    done = signalled(numbers=(number,))
    assert (done.returncode, done.stderr) == (0, "")


def test_a_hangup_in_the_imports_is_ignored(signalled):
    done = signalled(numbers=(signal.SIGHUP,))
    assert (done.returncode, done.stderr) == (1, "survived\n")


@pytest.mark.parametrize("question", ["--check", "--print-config"])
def test_a_stop_is_no_answer_to_a_question(signalled, question):
    done = signalled(question, numbers=(signal.SIGTERM,))
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_first_process_of_a_container_hears_a_stop_in_its_imports(signalled, number):
    """To such a one the kernel gives no signal that has no handler."""
    if subprocess.run([*FIRST_OF_ITS_CONTAINER, "true"], capture_output=True).returncode:
        pytest.skip("this machine gives no namespace of processes")
    done = signalled(numbers=(number,), before=FIRST_OF_ITS_CONTAINER)
    assert (done.returncode, done.stderr) == (0, "")
