"""The Open Inference Protocol beside Classify: the same answers, in the words of other clients."""

from functools import partial

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from open_inference_calls import (
    CODES,
    FILES,
    PIXELS,
    SERVICE,
    arrays,
    asking,
    infer,
    of_files,
    prefixed,
    refusal,
    tensor,
    texts,
)
from PIL import Image
from processes import FAKE_SERVING, TIMEOUT, serving, starting, until
from tiny import encoded, tiny_bundle
from troubled import free_port, requests_logged

from packshot import Client, __version__
from packshot.image import ImageSpec
from packshot.oip import open_inference_pb2 as pb
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from packshot.prediction import probabilities
from serving.api.tensors import images_of

TEMPERATURE = 2.5
MOST = 2**63 - 1
RECONNECTING_SOON = [
    (f"grpc.{which}_reconnect_backoff_ms", 20) for which in ("initial", "min", "max")
]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A store whose second version is damaged, and not released yet."""
    store = tmp_path_factory.mktemp("models")
    tiny_bundle(store, temperature=TEMPERATURE)
    (tiny_bundle(store) / "labels.txt").unlink()
    (store / "colours" / "released").write_text("1\n")
    return store


@pytest.fixture(scope="module")
def server(models):
    with serving("--models", models, "--reload-seconds", 0.05) as running:
        yield running


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return GRPCInferenceServiceStub(channel)


FORMS = {
    "files": of_files(),
    "a column of files": asking(tensor("BYTES", (3, 1)), prefixed(FILES)),
    "files, typed": asking(tensor("BYTES", (3,), bytes_contents=FILES)),
    "pixels": asking(tensor("UINT8", PIXELS.shape), PIXELS.tobytes()),
    "pixels, typed": asking(tensor("UINT8", PIXELS.shape, uint_contents=PIXELS.ravel().tolist())),
    "a file, as a vector": asking(tensor("UINT8", (1, len(FILES[0]))), FILES[0]),
    "a file, as a typed vector": asking(
        tensor("UINT8", (1, len(FILES[0])), uint_contents=list(FILES[0]))
    ),
    "a JPEG without its length": asking(tensor("BYTES", (1,)), FILES[0]),
    "a file beside an empty message": asking(
        tensor("BYTES", (1,), bytes_contents=[]), prefixed(FILES[:1])
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_input_gets_the_answers_of_classify(server, stub, form):
    with Client(server.target, timeout_seconds=TIMEOUT) as client:
        results = client.classify(FILES, include_logits=True)
        vectors = [one.embedding for one in client.embed(FILES)]
    found = arrays(infer(stub, FORMS[form]))
    images = 3 if "files" in form or "pixels" in form else 1
    assert found["logits"].tolist() == [list(one.logits) for one in results[:images]]
    assert found["embedding"].tolist() == [row.tolist() for row in vectors[:images]]
    for row, result in zip(found["probabilities"], results, strict=False):
        shares = {p.index: p.probability for p in result.predictions}
        assert row.tolist() == pytest.approx([shares[index] for index in range(3)])
    assert np.allclose(found["probabilities"], probabilities(found["logits"], TEMPERATURE))


def test_a_length_that_looks_like_the_start_of_a_jpeg_is_a_length():
    file = bytes(int.from_bytes(b"\xff\xd8\xff\x00", "little"))
    request = asking(tensor("BYTES", (1,)), prefixed([file]))
    (image,) = images_of(request, ImageSpec(), lambda _: None)
    assert len(image.content) == len(file)


def test_an_answer_says_what_gave_it(stub):
    request = of_files()
    request.id = "order 7"
    reply = infer(stub, request)
    assert (reply.id, reply.model_name, reply.model_version) == ("order 7", "colours", "1")
    assert reply.parameters["engine"].string_param == "fp32"
    assert list(arrays(reply)) == ["logits", "probabilities", "embedding"], "all, as none is named"


def test_only_what_is_named_is_answered_in_that_order(stub):
    reply = infer(stub, of_files(outputs=["embedding", "logits"]))
    assert list(arrays(reply)) == ["embedding", "logits"]


def test_classification_ranks_and_names(stub):
    wanted = [("probabilities", 2), "embedding", ("logits", 9)]
    reply = infer(stub, of_files(outputs=wanted))
    assert [list(output.shape) for output in reply.outputs] == [[3, 2], [3, 3], [3, 3]]
    assert reply.outputs[1].datatype == "FP32"
    numbers = arrays(infer(stub, of_files()))
    for number, name, best in ((0, "probabilities", 2), (2, "logits", 3)):
        expected = [
            f"{row[index]:.6f}:{index}:{('red', 'green', 'blue')[index]}"
            for row in numbers[name].astype(float)
            for index in np.argsort(-row, kind="stable")[:best]
        ]
        assert texts(reply, number) == expected
    assert [text.split(":")[2] for text in texts(reply)[::2]] == ["red", "green", "blue"]


def test_models_and_versions_that_are_not_served(stub):
    for call, empty in (
        (stub.ModelInfer, partial(pb.ModelInferRequest, inputs=[tensor()])),
        (stub.ModelMetadata, pb.ModelMetadataRequest),
        (stub.ModelConfig, pb.ModelConfigRequest),
        (stub.ModelReady, pb.ModelReadyRequest),
    ):
        prefix = "model_" if call is stub.ModelInfer else ""
        unknown = empty(**{f"{prefix}name": "shoes"})
        assert "no model 'shoes'" in refusal(call, unknown, CODES.NOT_FOUND)
        other = empty(**{f"{prefix}name": "colours", f"{prefix}version": "7"})
        assert refusal(call, other, CODES.NOT_FOUND) == "no version '7' of colours; 1 is served"


def test_the_served_version_may_be_named(stub):
    request = of_files()
    request.model_name, request.model_version = "colours", "1"
    assert infer(stub, request).model_version == "1"


def test_the_terms_of_a_request(stub):
    spent = refusal(stub.ModelInfer, of_files(timeout=1), CODES.RESOURCE_EXHAUSTED)
    assert "try again later or allow more time" in spent
    for terms in ({"timeout": 0}, {"timeout": MOST}, {"priority": 0}, {"priority": MOST}):
        assert arrays(infer(stub, of_files(**terms)))
    unsigned = of_files()
    unsigned.parameters["priority"].uint64_param = 2**64 - 1
    unsigned.parameters["timeout"].uint64_param = 2**64 - 1
    assert arrays(stub.ModelInfer(unsigned))  # no deadline of its own


def test_unknown_parameters_are_ignored(stub):
    more = {"triton_enable_empty_final_response": True, "sequence_id": 3, "mine": "x", "half": 0.5}
    assert arrays(infer(stub, of_files(**more)))


def test_metadata(stub):
    found = stub.ModelMetadata(pb.ModelMetadataRequest(name="colours"), timeout=TIMEOUT)
    assert (found.name, list(found.versions), found.platform) == ("colours", ["1"], "packshot_fp32")
    described = [(t.name, t.datatype, list(t.shape)) for t in (*found.inputs, *found.outputs)]
    assert described == [
        ("images", "UINT8", [-1, 224, 224, 3]),
        ("logits", "FP32", [-1, 3]),
        ("probabilities", "FP32", [-1, 3]),
        ("embedding", "FP32", [-1, 3]),
    ]
    server = stub.ServerMetadata(pb.ServerMetadataRequest(), timeout=TIMEOUT)
    assert (server.name, server.version) == ("packshot", __version__)
    assert list(server.extensions) == ["classification", "schedule_policy", "model_configuration"]


def test_the_configuration_agrees_with_the_metadata(stub):
    config = stub.ModelConfig(pb.ModelConfigRequest(), timeout=TIMEOUT).config
    found = stub.ModelMetadata(pb.ModelMetadataRequest(), timeout=TIMEOUT)
    assert (config.name, config.platform, config.max_batch_size) == (found.name, found.platform, 32)
    assert config.WhichOneof("scheduling_choice") == "dynamic_batching"
    for one, other in zip(
        (*config.input, *config.output), (*found.inputs, *found.outputs), strict=True
    ):
        assert (one.name, [-1, *one.dims]) == (other.name, list(other.shape))
        assert pb.DataType.Name(one.data_type) == f"TYPE_{other.datatype}"
    assert [output.label_filename for output in config.output] == ["labels.txt", "labels.txt", ""]
    assert config.parameters["packshot.temperature"].string_value == str(TEMPERATURE)


def test_the_repository_tells_what_is_served_and_what_stays_out(models, stub):
    def listed(**wanted: object) -> list[tuple[str, ...]]:
        request = pb.RepositoryIndexRequest(**wanted)
        found = stub.RepositoryIndex(request, timeout=TIMEOUT).models
        return [(one.name, one.version, one.state, one.reason) for one in found]

    serves = ("colours", "1", "READY", "")
    (models / "colours" / "released").unlink()
    until(lambda: listed() == [serves, ("colours", "2", "UNAVAILABLE", "damaged")])
    assert listed(ready=True) == [serves]
    other = pb.RepositoryIndexRequest(repository_name="mine")
    assert "leave repository_name empty" in refusal(stub.RepositoryIndex, other)


def test_a_stream_answers_in_order_and_goes_on_after_an_error(stub):
    noise = np.random.default_rng(0).integers(0, 255, (1200, 1200, 3), np.uint8)
    slow = of_files([encoded(Image.fromarray(noise), "PNG")])
    unknown = of_files()
    unknown.model_name = "shoes"
    sent = [slow, of_files([b"text"]), of_files(outputs=["logits"]), unknown, slow, of_files()]
    for number, request in enumerate(sent):
        request = sent[number] = pb.ModelInferRequest.FromString(request.SerializeToString())
        request.id = str(number)
    replies = list(stub.ModelStreamInfer(iter(sent), timeout=TIMEOUT))
    assert [reply.infer_response.id for reply in replies] == list("012345")
    assert [reply.error_message.split(":")[0] for reply in replies] == [
        "", "INVALID_ARGUMENT", "", "NOT_FOUND", "", "",
    ]  # fmt: skip
    assert "images[0] cannot be used: not_an_image" in replies[1].error_message
    expected = arrays(infer(stub, of_files()))["logits"]
    assert np.array_equal(arrays(replies[2].infer_response)["logits"], expected)


def test_other_rpcs_of_the_protocol_are_unimplemented(server, channel):
    sample = (
        'grpc_server_handled_total{grpc_code="UNIMPLEMENTED",grpc_method="unknown",'
        'grpc_service="unknown",grpc_type="unary"}'
    )
    before = server.metric(sample)
    for method in ("RepositoryModelLoad", "ModelStatistics", "SystemSharedMemoryStatus"):
        call = channel.unary_unary(f"/{SERVICE}/{method}")
        refusal(call, b"", CODES.UNIMPLEMENTED)
    assert server.metric(sample) == before + 3


def test_it_is_counted_as_other_calls_are(server, stub):
    sample = (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="ModelInfer",'
        f'grpc_service="{SERVICE}",grpc_type="unary"}}'
    )
    before = server.metric(sample), server.metric("packshot_images_total")
    infer(stub, of_files())
    assert (server.metric(sample), server.metric("packshot_images_total")) == (
        before[0] + 1, before[1] + 3,
    )  # fmt: skip


def test_reflection_tells_the_service(channel):
    database = ProtoReflectionDescriptorDatabase(channel)
    service = DescriptorPool(database).FindServiceByName(SERVICE)
    assert {method.name for method in service.methods} == {
        "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer",
        "ModelStreamInfer", "ModelConfig", "RepositoryIndex",
    }  # fmt: skip


def test_a_token_is_needed(store, tmp_path):
    (tmp_path / "tokens").write_text("a-token-that-nobody-guesses\n")
    with (
        serving("--models", store, "--token-file", tmp_path / "tokens") as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        stub = GRPCInferenceServiceStub(channel)
        for call in (stub.ModelInfer, stub.ServerLive):
            with pytest.raises(grpc.RpcError) as caught:
                call(of_files() if call is stub.ModelInfer else pb.ServerLiveRequest())
            assert caught.value.code() is CODES.UNAUTHENTICATED
        shown = (("authorization", "Bearer a-token-that-nobody-guesses"),)
        assert arrays(stub.ModelInfer(of_files(), timeout=TIMEOUT, metadata=shown))


@pytest.fixture
def held(store, tmp_path):
    """A server that loads while tmp_path/closed is there and hangs while tmp_path/hang is."""
    (tmp_path / "closed").touch()
    port = free_port()
    limits = ("--max-queued-images", 8, "--max-images-per-request", 8, "--max-batch", 1)
    every_call = ("--access-log-per-second", 1_000_000)
    with (
        starting(
            "--models", store, "--control", tmp_path, "--port", port, "--lanes", 1, *limits,
            "--drain-delay-seconds", 3600, *every_call, program=FAKE_SERVING,
        ) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}", options=RECONNECTING_SOON) as channel,
    ):  # fmt: skip
        yield server, channel


def readiness(channel: grpc.Channel) -> tuple[bool, bool, bool]:
    """Of server and model by the protocol, and of the service by the health service."""
    stub, options = GRPCInferenceServiceStub(channel), {"timeout": TIMEOUT, "wait_for_ready": True}
    assert stub.ServerLive(pb.ServerLiveRequest(), **options).live
    health = health_pb2_grpc.HealthStub(channel).Check(
        health_pb2.HealthCheckRequest(service=SERVICE), **options
    )
    return (
        stub.ServerReady(pb.ServerReadyRequest(), **options).ready,
        stub.ModelReady(pb.ModelReadyRequest(name="colours"), **options).ready,
        health.status == health_pb2.HealthCheckResponse.SERVING,
    )


def test_readiness_deadlines_and_priorities(held, tmp_path):
    """One life of a server, as each stage of it needs the one before."""
    server, channel = held
    stub = GRPCInferenceServiceStub(channel)
    assert readiness(channel) == (False, False, False)
    assert "still being loaded" in refusal(stub.ModelInfer, of_files(), CODES.UNAVAILABLE)
    (tmp_path / "closed").unlink()
    server.wait_until_ready()
    assert readiness(channel) == (True, True, True)

    (tmp_path / "hang").touch()
    expired = refusal(stub.ModelInfer, of_files(timeout=250_000), CODES.DEADLINE_EXCEEDED)
    assert expired == "no answer within 0.250 s"
    bulk = stub.ModelInfer.future(of_files(FILES[:1] * 8, priority=2), timeout=TIMEOUT)
    until(lambda: server.metric("packshot_images_in_progress") == 8)
    prompt = stub.ModelInfer.future(of_files(FILES[:1] * 8, priority=1), timeout=TIMEOUT)
    assert bulk.code() is CODES.RESOURCE_EXHAUSTED
    assert "this bulk request made room for interactive ones" in bulk.details()
    assert dict(bulk.trailing_metadata())["grpc-retry-pushback-ms"] == "250"
    (tmp_path / "hang").unlink()
    assert len(arrays(prompt.result(TIMEOUT))["logits"]) == 8
    until(lambda: requests_logged(server, "ModelInfer")[-1]["code"] == "OK")
    logged = requests_logged(server, "ModelInfer")[-1]
    told = {"model": "colours", "version": 1, "engine": "fp32", "images": 8}
    assert logged.items() >= told.items()
    assert min(logged[f"{stage}_ms"] for stage in ("decode", "queue", "infer")) > 0

    server.process.terminate()
    until(lambda: readiness(channel) == (False, False, False))
    assert arrays(infer(stub, of_files())), "it goes on accepting for a while"
    assert server.stop() == 0, "a second signal hurries the drain"
