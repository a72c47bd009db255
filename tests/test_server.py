"""The server as a process of its own, on a bundle that needs no torch, over real sockets."""

import itertools
import shutil
import signal
import socket
from functools import cache

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image
from processes import FAKE_SERVING, TIMEOUT, Server, page, program, serving, starting, until
from tiny import PURE, colour_network, encoded, jpeg, reference, tiny_bundle

from packshot import Client
from packshot.bundle import sha256_of
from packshot.errors import DeadlineExceeded, InvalidInput, NotFound, Unavailable
from packshot.image import ImageSpec, load_pixels
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = PURE["red"]


@pytest.fixture
def client(server):
    with Client(server.target, timeout_seconds=TIMEOUT) as client:
        yield client


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield ClassifierStub(channel)


def status(call, *arguments) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=TIMEOUT)
    return caught.value


def test_answers_with_the_right_labels(client):
    results = client.classify([jpeg(colour) for colour in PURE.values()])
    assert [result.label for result in results] == ["red", "green", "blue"]
    assert {(r.model, r.version, r.engine) for r in results} == {("colours", 1, "fp32")}
    assert all(sum(p.probability for p in r.predictions) == pytest.approx(1) for r in results)


def test_logits_are_those_of_the_network_on_packshots_pixels(client):
    rng = np.random.default_rng(0)
    photos = [
        encoded(Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)), "JPEG")
        for _ in range(20)
    ]
    expected = reference(np.stack([load_pixels(photo, ImageSpec()) for photo in photos]))
    results = client.classify(photos, include_logits=True)
    assert np.allclose([result.logits for result in results], expected, atol=1e-3)


def test_raw_pixels_skip_the_decoder(client):
    pixels = load_pixels(jpeg(RED), ImageSpec())
    by_file, by_pixels = client.classify([jpeg(RED), pixels], include_logits=True)
    assert by_pixels.logits == by_file.logits


def test_bad_images_get_errors_of_their_own_while_the_others_are_answered(client, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    good = jpeg(RED)
    results = client.classify(
        [
            good, b"", text, good[: len(good) // 2], encoded(Image.new("1", (3000, 1000)), "PNG"),
            np.zeros((10, 10, 3), np.uint8), tmp_path / "missing.jpg", good,
        ]
    )  # fmt: skip
    assert [result.reason for result in results] == [
        None, "empty", "not_an_image", "damaged", "too_many_pixels", "wrong_size", "unreadable",
        None,
    ]  # fmt: skip
    assert results[0].label == results[-1].label == "red"
    assert "3000x1000 pixels; the limit is 2000000" in results[4].error
    with pytest.raises(InvalidInput, match="not an image"):
        _ = results[2].label


def test_bad_requests_are_refused_with_the_reason(stub):
    image = pb.Image(encoded=jpeg(RED))
    empty = status(stub.Classify, pb.ClassifyRequest())
    assert (empty.code(), empty.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT, "the request has no image; send 1 or more",
    )  # fmt: skip
    many = status(stub.Classify, pb.ClassifyRequest(images=[image] * 33))
    assert many.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "33 images; at most 32" in many.details()
    negative = status(stub.Classify, pb.ClassifyRequest(images=[image], top_k=-1))
    assert "top_k is -1" in negative.details()
    unknown = status(stub.Classify, pb.ClassifyRequest(images=[image], model="shoes"))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "'shoes'" in unknown.details()


def test_an_image_without_content_is_an_empty_image(stub):
    reply = stub.Classify(pb.ClassifyRequest(images=[pb.Image()]), timeout=TIMEOUT)
    assert reply.results[0].error.reason == "empty"


def test_top_k(client):
    assert len(client.classify(jpeg(RED), top_k=2)[0].predictions) == 2
    assert len(client.classify(jpeg(RED), top_k=9)[0].predictions) == 3


def test_a_deadline_that_cannot_be_met_is_said_so(server):
    with (
        Client(server.target, timeout_seconds=1e-6) as client,
        pytest.raises(DeadlineExceeded, match=server.target),
    ):
        client.classify(jpeg(RED))


def test_the_model_says_which_engine_answers_and_why_not_a_better_one(client, server):
    model = client.model()
    assert (model.model, model.version, model.engine) == ("colours", 1, "fp32")
    assert model.labels == ("red", "green", "blue")
    assert model.input_shape == (224, 224, 3)
    assert model.refused.keys() == {"int8"}
    assert model.refused["int8"].startswith("answers_differ: logits of the golden samples differ")
    assert "engine int8 refused" in server.log
    assert "engine fp32, on" in server.log
    refusals = (
        'packshot_engine_refusals_total{engine="int8",model="colours",reason="answers_differ"}'
    )
    assert server.metric(refusals) == 1
    in_use = 'packshot_engine_in_use{engine="fp32",model="colours",version="1"}'
    assert server.metric(in_use) == 1


def test_metrics_count_what_was_done(client, server):
    def counts() -> tuple[float, ...]:
        return tuple(
            server.metric(sample)
            for sample in (
                'packshot_images_total{model="colours",result="ok"}',
                'packshot_images_total{model="colours",result="not_an_image"}',
                'packshot_stage_seconds_count{model="colours",stage="decode"}',
                'packshot_stage_seconds_count{model="colours",stage="total"}',
                "packshot_batch_images_sum",
                'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify",'
                'grpc_service="packshot.v1.Classifier",grpc_type="unary"}',
            )
        )

    before = counts()
    client.classify([jpeg(RED), jpeg(RED), b"text"])
    gained = tuple(now - then for now, then in zip(counts(), before, strict=True))
    assert gained == (2, 1, 2, 1, 2, 1)
    assert server.metric("packshot_ready") == 1
    assert server.metric("packshot_images_in_progress") == 0


def health(target: str, service: str) -> int:
    with grpc.insecure_channel(target) as channel:
        request = health_pb2.HealthCheckRequest(service=service)
        return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT).status


def test_health(server):
    serving_status = health_pb2.HealthCheckResponse.SERVING
    assert health(server.target, "") == serving_status
    assert health(server.target, "packshot.v1.Classifier") == serving_status


def test_reflection_tells_the_api(server):
    with grpc.insecure_channel(server.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "packshot.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        service = DescriptorPool(database).FindServiceByName("packshot.v1.Classifier")
        assert [method.name for method in service.methods] == [
            "Classify", "ClassifyStream", "Embed", "GetModel",
        ]  # fmt: skip


@cache
def big_image() -> bytes:
    """Takes a while to decode."""
    noise = np.random.default_rng(0).integers(0, 255, (1400, 1400, 3), np.uint8)
    return encoded(Image.fromarray(noise), "PNG")


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


def test_overload_is_refused_at_once_with_a_hint_when_to_come_back(store):
    limits = ("--max-queued-images", 8, "--max-images-per-request", 8)
    with (
        serving("--models", store, *limits) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        request = pb.ClassifyRequest(images=[pb.Image(encoded=big_image())] * 8)
        calls = [ClassifierStub(channel).Classify.future(request) for _ in range(12)]
        errors = [call.exception(TIMEOUT) for call in calls]
        refused = [error for error in errors if error is not None]
        assert 1 <= len(refused) < len(calls)
        assert {error.code() for error in refused} == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert "room for 0 more images" in refused[0].details()
        assert dict(refused[0].trailing_metadata())["grpc-retry-pushback-ms"] == "250"
        counted = server.metric(
            'packshot_requests_refused_total{model="colours",reason="queue_full"}'
        )
        assert counted == len(refused)
        assert server.metric("packshot_images_in_progress") == 0


def test_a_request_without_a_deadline_gets_the_servers(store):
    with (
        serving("--models", store, "--default-timeout-ms", 1) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        request = pb.ClassifyRequest(images=[pb.Image(encoded=big_image())])
        with pytest.raises(grpc.RpcError) as caught:
            ClassifierStub(channel).Classify(request)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert caught.value.details() == "no answer within 0.001 s"


def test_an_engine_that_opens_but_cannot_run_is_refused(tmp_path):
    tiny_bundle(tmp_path, int8=colour_network(embedding="something_else"))
    with serving("--models", tmp_path) as server, Client(server.target) as client:
        model = client.model()
        assert model.engine == "fp32"
        assert model.refused["int8"].startswith("load_failed: it cannot run the golden samples")
        assert str(tmp_path) not in model.refused["int8"]


def test_a_draining_server_says_it_is_not_ready_but_still_answers(store):
    with serving("--models", store, "--drain-delay-seconds", 60) as server:
        server.process.terminate()
        until(lambda: health(server.target, "packshot.v1.Classifier") == 2)
        assert health(server.target, "") == 1
        assert server.metric("packshot_ready") == 0
        with Client(server.target) as client:
            assert client.classify(jpeg(RED))[0].label == "red"
        assert server.stop() == 0, "a second signal hurries the drain"


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
    message = refused_to_start("--models", tmp_path, "--engines", "int8,tensorrt,tpu")
    assert "golden samples differ" in message
    assert "tensorrt: not in the bundle: it was not exported" in message
    assert "no engine 'tpu'" in message


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


def test_versions_come_go_and_come_back_without_a_failed_request(store):
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        seen: list[int] = []

        def served(version: int) -> bool:
            (result,) = client.classify(jpeg(RED))
            assert result.label == "red"
            seen.append(result.version)
            return result.version == version

        assert served(1)
        tiny_bundle(store)
        until(lambda: served(2))
        (store / "colours" / "released").write_text("1\n")
        until(lambda: served(1))
        (store / "colours" / "released").unlink()
        until(lambda: served(2))
        changes = [version for version, _ in itertools.groupby(seen)]
        assert changes == [1, 2, 1, 2]
        assert server.metric('packshot_reloads_total{model="colours",result="swapped"}') == 3
        in_use = 'packshot_engine_in_use{engine="fp32",model="colours",version='
        assert (server.metric(in_use + '"1"}'), server.metric(in_use + '"2"}')) == (0, 1)
        assert server.stop() == 0


def test_a_bad_version_stays_out_and_says_why(store, tmp_path):
    tiny_bundle(tmp_path / "elsewhere")
    second = tiny_bundle(tmp_path / "elsewhere")
    sound = (second / "model.onnx").read_bytes()
    (second / "model.onnx").write_bytes(b"not what the manifest says")
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        second.rename(store / "colours" / "2")
        until(lambda: client.model().rejected == {"2": "damaged"})
        assert client.classify(jpeg(RED))[0].version == 1
        assert "2 stays out" in server.log
        damaged = 'packshot_reloads_total{model="colours",result="damaged"}'
        assert server.metric(damaged) == 1
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.metric(damaged) == 2)  # tried again, though nothing has changed
        (store / "colours" / "2" / "model.onnx").write_bytes(sound)
        until(lambda: client.model().version == 2)  # it had been half a copy
        assert client.model().rejected == {}
        (store / "colours" / "released").write_text("9\n")
        until(lambda: client.model().rejected == {"released": "not_found"})
        (store / "colours" / "released").write_text("9" * 5000)  # too long for a number
        failed = 'packshot_reloads_total{model="colours",result="failed"}'
        until(lambda: server.metric(failed) + client.model().version == 2)
        (store / "colours" / "released").unlink()
        until(lambda: client.model().rejected == {})
        assert client.model().version == 2
        (store / "colours" / "3").mkdir()
        (store / "colours" / "3" / "manifest.json").write_text("half a")
        until(lambda: client.model().rejected == {"3": "damaged"})
        shutil.rmtree(store / "colours" / "3")
        until(lambda: client.model().rejected == {})


def test_a_stop_while_loading_waits_for_no_thread(store, tmp_path):
    (tmp_path / "closed").touch()
    options = ("--models", store, "--engines", "fp32", "--control", tmp_path)
    with starting(*options, program=FAKE_SERVING) as server:
        until(lambda: f"loading {store}" in server.log)
        server.process.send_signal(signal.SIGHUP)  # told to look again, not to die
        assert server.stop() == 0
        assert "stopped while loading" in server.log


def test_a_stop_during_a_reload_waits_for_no_thread(store, tmp_path):
    options = ("--models", store, "--engines", "fp32", "--control", tmp_path)
    with serving(*options, "--reload-seconds", 0.05, program=FAKE_SERVING) as server:
        (tmp_path / "closed").touch()
        tiny_bundle(store)
        until(lambda: server.log.count(f"loading {store}") == 2)
        assert server.stop() == 0
        assert "drained" in server.log


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
            image = pb.Image(encoded=jpeg(RED))
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
            image = pb.Image(encoded=jpeg(RED))

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


def test_a_folder_renamed_to_another_version_is_refused(store):
    (store / "colours" / "1").rename(store / "colours" / "7")
    assert "7 holds version 1 of 'colours'" in refused_to_start("--models", store)


def test_requests_are_answered_by_the_version_that_let_them_in(store):
    with (
        serving("--models", store, "--reload-seconds", 0) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = ClassifierStub(channel)
        request = pb.ClassifyRequest(images=[pb.Image(encoded=big_image())] * 8)
        slow = stub.Classify.future(request, timeout=TIMEOUT)
        until(lambda: server.metric("packshot_images_in_progress") == 8)
        tiny_bundle(store)
        server.process.send_signal(signal.SIGHUP)
        quick = pb.ClassifyRequest(images=[pb.Image(pixels=bytes(224 * 224 * 3))])
        until(lambda: stub.Classify(quick, timeout=TIMEOUT).version == 2)
        reply = slow.result(TIMEOUT)
        assert reply.version == 1
        assert not any(result.HasField("error") for result in reply.results)
        assert server.stop() == 0


def test_an_unreachable_server_is_named():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with Client(target) as client, pytest.raises(Unavailable, match=target):
        client.classify(jpeg(RED))


def test_unknown_model_through_the_client(server: Server):
    with Client(server.target, model="shoes") as client, pytest.raises(NotFound, match="shoes"):
        client.classify(jpeg(RED))
