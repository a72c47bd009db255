"""`packshot probe`, as the health check of a container."""

import argparse

import grpc
import pytest
from certificates import Authority
from processes import TIMEOUT, program, serving, until

from packshot.cli_probe import add_probe_verb
from packshot.client import DEFAULT_TARGET, Client
from packshot.errors import Unavailable

READY = "packshot.v1.Classifier"


def probe(target: str, *options: object):
    return program("packshot.cli", "probe", "--target", target, "--timeout", 60, *options)


def test_ready_alive_and_neither(server):
    ready = probe(server.target)
    assert (ready.returncode, ready.stdout) == (0, f"{server.target}: {READY} is SERVING\n")
    alive = probe(server.target, "--service", "")
    assert (alive.returncode, alive.stdout) == (0, f"{server.target}: the server is SERVING\n")
    unknown = probe(server.target, "--service", "x" * 256)  # whose length takes two bytes
    assert unknown.returncode == 1
    assert unknown.stderr == f"{server.target}: the server has no service {'x' * 256}\n"
    long = probe(server.target, "--service", "x" * 257)
    assert "the service's name has 257 characters; at most 256 are taken" in long.stderr


HEALTH = "/grpc.health.v1.Health"
REFLECTION = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"


@pytest.mark.parametrize("method", [f"{HEALTH}/Check", f"{HEALTH}/Watch", REFLECTION])
def test_what_is_no_message_is_told_so_and_no_fault(server, method):
    with grpc.insecure_channel(server.target) as channel:
        ask = channel.stream_stream(method)  # bytes as they are, whatever the method takes
        with pytest.raises(grpc.RpcError) as caught:
            list(ask(iter([b"\xff" * 9]), timeout=TIMEOUT))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "cannot be parsed" in caught.value.details()
    assert "Traceback" not in server.log


def test_a_draining_server_is_alive_and_not_ready(store):
    with serving("--models", store, "--drain-delay-seconds", 600) as server:
        server.process.terminate()
        until(lambda: probe(server.target).returncode == 1)
        assert probe(server.target).stderr == f"{server.target}: {READY} is NOT_SERVING\n"
        assert probe(server.target, "--service", "").returncode == 0
        server.process.terminate()


def test_a_health_check_asks_the_server_beside_it(server, monkeypatch):
    monkeypatch.setenv("PACKSHOT_PORT", server.target.rpartition(":")[2])
    found = program("packshot.cli", "probe", "--timeout", 60)
    assert (found.returncode, found.stdout) == (0, f"{server.target}: {READY} is SERVING\n")


@pytest.mark.parametrize("port", ["tcp://10.0.0.1:8001", "65536", "0", "-1", "", "80x", "\u0663"])
def test_what_is_no_port_is_not_the_servers(monkeypatch, port):
    monkeypatch.setenv("PACKSHOT_PORT", port)
    parser = argparse.ArgumentParser()
    add_probe_verb(parser.add_subparsers())
    assert parser.parse_args(["probe"]).target == DEFAULT_TARGET


def test_nobody_there():
    found = probe("127.0.0.1:1")
    assert found.returncode == 1
    assert found.stderr.startswith(f"127.0.0.1:1: {READY} did not tell: ")
    assert "Traceback" not in found.stderr


def test_a_target_that_cannot_be_one_is_no_usage_error_to_docker():
    found = probe("127.0.0.1:99999")
    assert (found.returncode, found.stdout) == (1, "")
    assert "did not tell: the target is '127.0.0.1:99999'; it must be host:port" in found.stderr


def test_the_http_port_is_told_from_that_of_grpc(server):
    page = server.http_url.removeprefix("http://")
    found = probe(page)
    assert found.returncode == 1
    assert "is it the server's HTTP port? Its gRPC port is another" in found.stderr
    with Client(page) as client, pytest.raises(Unavailable, match="is it the server's HTTP port"):
        client.model()


def test_by_tls_with_a_certificate_for_another_name(store, tmp_path):
    authority = Authority()
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"
    authority.issue(cert, key, name="packshot.shop", host="packshot.shop")
    ca = authority.pem(tmp_path / "ca.crt")
    with serving("--models", store, "--tls-cert", cert, "--tls-key", key) as server:
        assert probe(server.target).returncode == 1
        assert probe(server.target, "--ca", ca).returncode == 1
        assert probe(server.target, "--ca", ca, "--server-name", "packshot.shop").returncode == 0
