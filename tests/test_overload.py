"""More than a server can take: who is refused, who makes room, and who is answered all the same."""

from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from processes import FAKE_SERVING, TIMEOUT, Server, serving, until
from tiny import PURE, jpeg, tiny_bundle

from packshot import Client
from packshot.errors import DeadlineExceeded, Overloaded
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = jpeg(PURE["red"])


@contextmanager
def held(store, control, *options: object) -> Iterator[tuple[Server, ClassifierStub]]:
    """A server whose engine waits in its first run until `control`/hang is gone."""
    with (
        serving(
            "--models", store, "--engines", "fp32", "--control", control, *options,
            program=FAKE_SERVING,
        ) as server,
        grpc.insecure_channel(server.target) as channel,
    ):  # fmt: skip
        (control / "hang").touch()
        yield server, ClassifierStub(channel)


def test_overload_is_refused_at_once_with_a_hint_when_to_come_back(store, tmp_path):
    limits = ("--max-queued-images", 8, "--max-images-per-request", 8)
    with held(store, tmp_path, *limits) as (server, stub):
        request = pb.ClassifyRequest(images=[pb.Image(encoded=RED)] * 8)
        first = stub.Classify.future(request)
        until(lambda: server.metric("packshot_images_in_progress") == 8)
        refused = [stub.Classify.future(request).exception(TIMEOUT) for _ in range(11)]
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "room for 0 more images" in refused[0].details()
        assert dict(refused[0].trailing_metadata())["grpc-retry-pushback-ms"] == "250"
        counted = server.metric(
            'packshot_requests_refused_total{model="colours",reason="queue_full"}'
        )
        assert counted == len(refused)
        (tmp_path / "hang").unlink()
        assert len(first.result(TIMEOUT).results) == 8
        assert server.metric("packshot_images_in_progress") == 0


def test_a_request_without_a_deadline_gets_the_servers(store, tmp_path):
    with held(store, tmp_path, "--default-timeout-ms", 500) as (_, stub):
        request = pb.ClassifyRequest(images=[pb.Image(encoded=RED)])
        error = stub.Classify.future(request).exception(TIMEOUT)
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert error.details() == "no answer within 0.500 s"
        (tmp_path / "hang").unlink()


def test_a_deadline_that_passes_is_said_so(store, tmp_path):
    with (
        held(store, tmp_path) as (server, _),
        Client(server.target, timeout_seconds=0.5) as client,
        pytest.raises(DeadlineExceeded, match=server.target),
    ):
        client.classify(RED)


def test_a_refusal_that_could_only_be_tried_again_too_late_says_so(store, tmp_path):
    """gRPC's own retries would wait for the deadline, and the caller never hear why."""
    slow = ("--run-ms", 500, "--max-batch", 1, "--lanes", 1)
    with held(store, tmp_path, *slow) as (server, stub), Client(server.target) as client:
        most = client.model().max_images_per_request
        request = pb.ClassifyRequest(images=[pb.Image(encoded=RED)] * most)
        waiting = stub.Classify.future(request, timeout=600)
        until(lambda: server.metric("packshot_images_in_progress") == most)
        error = stub.Classify.future(request, timeout=1.5).exception(TIMEOUT)
        assert dict(error.trailing_metadata())["grpc-retry-pushback-ms"] == "-1"
        refused = pytest.raises(Overloaded, match="the answer would take")
        with Client(server.target, timeout_seconds=1.5) as patient, refused:
            patient.classify([RED] * most)
        waiting.cancel()
        (tmp_path / "hang").unlink()


def test_a_hanging_model_takes_no_call_of_another_or_of_health(tmp_path):
    """As many calls are taken as all queues hold, and some."""
    for name in ("a", "b", "c"):
        tiny_bundle(tmp_path / "models", name)
    room = ("--max-queued-images", 40, "--default-timeout-ms", 600_000)
    options = ("--models", tmp_path / "models", "--engines", "fp32", "--control", tmp_path, *room)
    with serving(*options, program=FAKE_SERVING) as server:
        (tmp_path / "hang").touch()
        with grpc.insecure_channel(server.target) as channel:
            stub = ClassifierStub(channel)
            image = pb.Image(encoded=RED)
            held = [
                stub.Classify.future(pb.ClassifyRequest(model=name, images=[image]))
                for name in ("a", "b", "c")
                for _ in range(40)
            ]
            until(lambda: server.metric("packshot_images_in_progress") == len(held))
            health = health_pb2_grpc.HealthStub(channel)
            alive = health.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT)
            assert alive.status == health_pb2.HealthCheckResponse.SERVING
            (tmp_path / "hang").unlink()
            assert {one.result().model for one in held} == {"a", "b", "c"}


@pytest.mark.parametrize("method", ["Classify", "Embed"])
def test_bulk_requests_make_room_for_interactive_ones(store, tmp_path, method):
    room = ("--max-queued-images", 3, "--max-images-per-request", 2, "--lanes", 1)
    options = ("--models", store, "--engines", "fp32", "--control", tmp_path, *room)
    with serving(*options, program=FAKE_SERVING) as server:
        (tmp_path / "hang").touch()
        with grpc.insecure_channel(server.target) as channel:
            stub = ClassifierStub(channel)
            image = pb.Image(encoded=RED)

            def ask(images: int, priority: pb.Priority) -> grpc.Future:
                kind = {"Classify": pb.ClassifyRequest, "Embed": pb.EmbedRequest}[method]
                request = kind(images=[image] * images, priority=priority)
                return getattr(stub, method).future(request, timeout=TIMEOUT)

            runs = ask(1, pb.PRIORITY_INTERACTIVE)
            until(lambda: server.metric("packshot_images_in_progress") == 1)
            bulk = ask(2, pb.PRIORITY_BULK)
            until(lambda: server.metric("packshot_images_in_progress") == 3)
            interactive = ask(2, pb.PRIORITY_INTERACTIVE)
            assert bulk.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "made room for interactive ones" in bulk.details()
            (tmp_path / "hang").unlink()
            assert len(interactive.result().results) == 2
            assert len(runs.result().results) == 1
