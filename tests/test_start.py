"""Starts: those that fail say why without a traceback, the others listen where they are told to."""

import signal
import socket

import pytest
from processes import FAKE_SERVING, TIMEOUT, page, program, serving, starting, until
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
