"""Stops: what was let in is answered, however long that takes, unless someone is in a hurry."""

import signal

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from http2 import HEADERS, connect, frames, half_a_message, hello, message, request_headers
from processes import FAKE_SERVING, TIMEOUT, serving, until
from tiny import PURE, big_image, jpeg, tiny_bundle

from packshot import Client
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

STARTED = (
    'grpc_server_started_total{grpc_method="Classify",grpc_service="packshot.v1.Classifier",'
    'grpc_type="unary"}'
)


@pytest.fixture
def held(store, tmp_path):
    """A server whose engine waits while the file `hang` is there, as it is."""
    options = ("--control", tmp_path, "--models", store, "--drain-timeout-seconds", 3600)
    with serving(*options, "--hang-seconds", 3600, program=FAKE_SERVING) as server:
        hang = tmp_path / "hang"
        hang.touch()  # only now: it proves itself first
        yield server, hang


def sent(channel: grpc.Channel, calls: int) -> list[grpc.Future]:
    """As many requests of eight images each, which wait for as long as it takes."""
    request = pb.ClassifyRequest(images=[pb.Image(encoded=big_image())] * 8)
    classify = ClassifierStub(channel).Classify
    return [classify.future(request, timeout=TIMEOUT) for _ in range(calls)]


def test_sigterm_answers_what_was_sent_and_exits_0(held):
    server, hang = held
    with grpc.insecure_channel(server.target) as channel:
        calls = sent(channel, 4)
        until(lambda: server.metric("packshot_images_in_progress") == 32)
        server.process.terminate()
        until(lambda: server.metric("packshot_ready") == 0)
        hang.unlink()
        assert server.end() == 0
        replies = [call.result(TIMEOUT) for call in calls]
    assert sum(len(reply.results) for reply in replies) == 32
    assert not any(r.HasField("error") for reply in replies for r in reply.results)
    assert "cut off" not in server.log
    assert '"event":"drained"' in server.lines[-1]


def test_a_health_watch_does_not_hold_up_the_drain(store):
    with (
        serving("--models", store, "--drain-timeout-seconds", 3600) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        request = health_pb2.HealthCheckRequest(service="packshot.v1.Classifier")
        watch = health_pb2_grpc.HealthStub(channel).Watch(request)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        assert server.stop() == 0
        assert next(watch).status == health_pb2.HealthCheckResponse.NOT_SERVING


def test_a_health_watch_that_takes_no_answers_holds_up_nobody(store):
    watching = request_headers("/grpc.health.v1.Health/Watch")
    with serving("--models", store) as server, connect(server.target) as connection:
        connection.sendall(hello(window=0) + watching + message(b"", last=True))
        assert HEADERS in (kind for kind, _ in frames(connection))  # its answer is being written
        assert server.health() == health_pb2.HealthCheckResponse.SERVING
        with connect(server.target) as gone:
            gone.sendall(hello(window=0) + watching + message(b"", last=True))
            assert HEADERS in (kind for kind, _ in frames(gone))
        assert server.stop() == 0
        assert '"event":"drained"' in server.lines[-1]
        assert "Traceback" not in server.log


def test_a_second_signal_cuts_the_drain_short(held):
    server, hang = held
    with grpc.insecure_channel(server.target) as channel:
        calls = sent(channel, 4)
        until(lambda: server.metric("packshot_images_in_progress") == 32)
        server.process.terminate()
        until(lambda: server.metric("packshot_ready") == 0)
        server.process.terminate()
        until(lambda: "4 requests were cut off" in server.log)
        hang.unlink()
        assert server.end() == 0
        assert all(call.exception(TIMEOUT) is not None for call in calls)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_once_drained_it_exits_0_whatever_signals_come(store, number):
    with serving("--models", store) as server:
        server.process.terminate()
        until(lambda: '"event":"drained"' in server.log)
        assert server.pester(number) == 0
        assert '"event":"drained"' in server.lines[-1]


def test_a_request_that_is_still_being_sent_is_waited_for_but_not_for_ever(store):
    with serving("--models", store) as server, connect(server.target) as slow:
        slow.sendall(hello() + request_headers("/packshot.v1.Classifier/Classify"))
        slow.sendall(half_a_message())
        until(lambda: server.metric(STARTED) == 1)
        assert server.stop() == 0
        assert (HEADERS, 1) in frames(slow)  # its end
        assert "cut off" not in server.log
        assert '"code":"UNAVAILABLE"' in server.log


def test_a_draining_server_says_it_is_not_ready_but_still_answers(store):
    with serving("--models", store, "--drain-delay-seconds", 60) as server:
        server.process.terminate()
        not_serving = health_pb2.HealthCheckResponse.NOT_SERVING
        until(lambda: server.health("packshot.v1.Classifier") == not_serving)
        assert server.health() == health_pb2.HealthCheckResponse.SERVING
        assert server.metric("packshot_ready") == 0
        with Client(server.target) as client:
            assert client.classify(jpeg(PURE["red"]))[0].label == "red"
        assert server.stop() == 0, "a second signal hurries the drain"


def test_a_stop_during_a_reload_waits_for_no_thread(store, tmp_path):
    options = ("--models", store, "--engines", "fp32", "--control", tmp_path)
    with serving(*options, "--reload-seconds", 0.05, program=FAKE_SERVING) as server:
        (tmp_path / "closed").touch()
        tiny_bundle(store)
        until(lambda: server.log.count(f"loading {store}") == 2)
        assert server.stop() == 0
        assert "drained" in server.log


def test_a_drain_ends_however_often_it_is_asked_to_look_for_versions(store):
    with serving("--models", store, "--reload-seconds", 0.05) as server:
        server.process.terminate()
        assert server.pester(signal.SIGHUP) == 0
