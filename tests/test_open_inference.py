"""The Open Inference Protocol beside Classify: the same answers, in the words of other clients."""

import random
from collections import Counter
from contextlib import suppress
from functools import partial

import grpc
import numpy as np
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import DecodeError
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from PIL import Image
from processes import FAKE_SERVING, TIMEOUT, Server, serving, starting, until
from test_fuzz import INSIDES, answers, mutated, requests_to
from tiny import PURE, encoded, jpeg, tiny_bundle
from troubled import free_port, requests_logged

from packshot import Client, __version__
from packshot.image import ImageSpec, load_pixels
from packshot.oip import open_inference_pb2 as pb
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from packshot.prediction import probabilities
from packshot.v1.classifier_pb2 import ClassifyRequest
from serving.api.answering import MAX_DETAILS
from serving.api.fields import has_more_fields
from serving.api.tensors import MAX_TYPED, images_of

SERVICE = "inference.GRPCInferenceService"
FILES = [jpeg(colour) for colour in PURE.values()]
PIXELS = np.stack([load_pixels(file, ImageSpec()) for file in FILES])
TEMPERATURE = 2.5
CODES = grpc.StatusCode
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


def prefixed(files: list[bytes]) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def tensor(datatype: str = "BYTES", shape: tuple[int, ...] = (3,), **contents: object):
    given = {"contents": pb.InferTensorContents(**contents)} if contents else {}
    return pb.ModelInferRequest.InferInputTensor(
        name="images", datatype=datatype, shape=shape, **given
    )


def asking(given, raw: bytes | None = None, outputs=(), **parameters: object):
    """`outputs`: names, or pairs of a name and the k of its classification."""
    request = pb.ModelInferRequest(inputs=[given])
    if raw is not None:
        request.raw_input_contents.append(raw)
    for name, best in ((one, None) if isinstance(one, str) else one for one in outputs):
        output = request.outputs.add(name=name)
        if best is not None:
            output.parameters["classification"].int64_param = best
    for name, value in parameters.items():
        set_parameter(request, name, value)
    return request


def set_parameter(request, name: str, value: object) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(request.parameters[name], kinds[type(value)], value)


def of_files(files: list[bytes] = FILES, **options: object) -> pb.ModelInferRequest:
    return asking(tensor("BYTES", (len(files),)), prefixed(files), **options)


def infer(stub, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return stub.ModelInfer(request, timeout=TIMEOUT)


def arrays(reply: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """Of outputs of numbers."""
    assert len(reply.outputs) == len(reply.raw_output_contents)
    assert {output.datatype for output in reply.outputs} == {"FP32"}
    return {
        output.name: np.frombuffer(raw, "<f4").reshape(output.shape)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def texts(reply: pb.ModelInferResponse, number: int = 0) -> list[str]:
    """Elements of an output of BYTES, row by row."""
    assert reply.outputs[number].datatype == "BYTES"
    raw, found = reply.raw_output_contents[number], []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(raw[4:end].decode())
        raw = raw[end:]
    return found


def refusal(call, request, code: grpc.StatusCode = CODES.INVALID_ARGUMENT) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=TIMEOUT)
    assert caught.value.code() is code, caught.value
    assert not INSIDES.search(caught.value.details())
    return caught.value.details()


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


IMAGES = pb.ModelInferRequest.InferInputTensor(name="images", datatype="BYTES", shape=[1])
IN_SHARED_MEMORY = pb.ModelInferRequest.InferInputTensor()
IN_SHARED_MEMORY.CopyFrom(IMAGES)
IN_SHARED_MEMORY.parameters["shared_memory_region"].string_param = "mine"
TO_SHARED_MEMORY = of_files(outputs=["logits"])
TO_SHARED_MEMORY.outputs[0].parameters["shared_memory_region"].string_param = "mine"
AS_TEXT = of_files(outputs=["logits"])
AS_TEXT.outputs[0].parameters["classification"].string_param = "3"
ONE = prefixed(FILES[:1])
HUGE = 2**63 - 1
NO_IMAGE, TOO_MANY = "the request has no image; send 1 or more", "images; at most 32 are taken"


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        (pb.ModelInferRequest(), "the inputs are []; send one, 'images'"),
        (pb.ModelInferRequest(inputs=[IMAGES, IMAGES]), "['images', 'images']; send one"),
        (
            pb.ModelInferRequest(inputs=[pb.ModelInferRequest.InferInputTensor(name="x" * 999)]),
            "xxx...xxx",
        ),
        (
            asking(tensor("FP32", (1, 3, 224, 224)), bytes(4 * 3 * 224 * 224)),
            "images is 'FP32' [1, 3, 224, 224]; send files as BYTES [N] or UINT8 [1, n], or pixels "
            "as UINT8 [N, 224, 224, 3]: the network normalises them itself",
        ),
        (asking(tensor("UINT8", (1, 3, 224, 224)), b""), "or pixels as UINT8 [N, 224, 224, 3]"),
        (asking(tensor("UINT8", (224, 224, 3)), b""), "'UINT8' [224, 224, 3]"),
        (asking(tensor("BYTES", ()), ONE), "'BYTES' []"),
        (asking(tensor("BYTES", (1, 2)), ONE), "'BYTES' [1, 2]"),
        (asking(tensor("BYTES", (1,) * 5), ONE), "5 dimensions; at most 4"),
        (asking(tensor("BYTES", (-1,)), ONE), "[-1]; none of it may be negative"),
        (asking(tensor("UINT8", (-1, -224, 224, 3)), b""), "none of it may be negative"),
        (asking(tensor("BYTES", (0,)), b""), NO_IMAGE),
        (asking(tensor("UINT8", (0, 224, 224, 3)), b""), NO_IMAGE),
        (asking(tensor("BYTES", (33,)), b""), f"33 {TOO_MANY}"),
        (asking(tensor("BYTES", (HUGE, 1)), bytes(4000)), f"{HUGE} {TOO_MANY}"),
        (asking(tensor("UINT8", (HUGE, 224, 224, 3)), b""), f"{HUGE} {TOO_MANY}"),
        (
            asking(tensor("UINT8", (1, HUGE)), b"1"),
            f"has 1 bytes; the shape that was sent makes it {HUGE}",
        ),
        (asking(tensor("UINT8", (1, 224, 224, 3)), bytes(9)), "makes it 150528"),
        (asking(tensor("UINT8", (1, 2), uint_contents=[0, 256])), "a value above 255"),
        (
            asking(tensor("UINT8", (1, 2), uint_contents=[0])),
            "uint_contents of images has 1 values",
        ),
        (asking(tensor("UINT8", (1, 2), int_contents=[0, 1])), "uint_contents of images has 0"),
        (
            asking(tensor("UINT8", (1, MAX_TYPED + 1), uint_contents=bytes(MAX_TYPED + 1))),
            "values; at most 1048576 are taken in that form: send them as raw_input_contents",
        ),
        (asking(tensor("BYTES", (2,), bytes_contents=[b"1"])), "bytes_contents of images has 1"),
        (asking(tensor("BYTES", (2,)), ONE), "element 1 of images would end at byte"),
        (asking(tensor("BYTES", (1,)), b"\xff\xff\xff\xff"), "would end at byte 4294967299"),
        (asking(tensor("BYTES", (1,)), ONE + b"!"), f"has {len(ONE) + 1} bytes"),
        (asking(tensor("BYTES", (1,), bytes_contents=[b"1"]), ONE), "beside raw_input_contents"),
        (
            pb.ModelInferRequest(inputs=[IMAGES], raw_input_contents=[ONE, ONE]),
            "raw_input_contents has 2 entries",
        ),
        (pb.ModelInferRequest(inputs=[IN_SHARED_MEMORY]), "in shared memory"),
        (TO_SHARED_MEMORY, "wanted in shared memory"),
        (of_files(outputs=["logit"]), "no output 'logit'; there is logits, probabilities, embedd"),
        (of_files(outputs=["logits", "logits"]), "name each once at most"),
        (of_files(outputs=["logits"] * 5000), "5000 outputs are wanted"),
        (of_files(outputs=[("logits", 0)]), "parameter classification is 0"),
        (of_files(outputs=[("logits", -1)]), "parameter classification is -1"),
        (AS_TEXT, "parameter classification is string_param"),
        (of_files(outputs=[("embedding", 1)]), "whose values have no labels"),
        (of_files(timeout="soon"), "parameter timeout is string_param"),
        (of_files(timeout=-1), "parameter timeout is -1"),
        (of_files(priority=1.5), "parameter priority is double_param"),
    ],
)
def test_what_cannot_be_used_is_refused_with_the_reason(stub, request_, said):
    assert said in refusal(stub.ModelInfer, request_)


def test_a_bad_image_is_named_and_counted(stub, server):
    def refused() -> float:
        return server.metric('packshot_images_total{model="colours",result="not_an_image"}')

    before = refused()
    details = refusal(stub.ModelInfer, of_files([FILES[0], b"text", b""]))
    assert details.startswith("images[1] cannot be used: not_an_image: not an image in any of")
    assert refused() == before + 1
    half = asking(tensor("UINT8", (1, 900)), FILES[0][:900])
    assert refusal(stub.ModelInfer, half).startswith("images[0] cannot be used: damaged: ")


MEGABYTE = 1 << 20
EMPTY_IMAGES = b"\x12\x00" * MEGABYTE  # field 2 of a ClassifyRequest
EMPTY_INPUTS = b"\x2a\x00" * MEGABYTE
MANY_NUMBERS = tensor("FP32", (1, MEGABYTE + 1), fp32_contents=[0.0] * (MEGABYTE + 1))
EMPTY_FILES = tensor("BYTES", (1,), bytes_contents=[b""] * MEGABYTE)


@pytest.mark.parametrize(
    ("method", "raw"),
    [
        ("packshot.v1.Classifier/Classify", EMPTY_IMAGES),
        (f"{SERVICE}/ModelInfer", EMPTY_INPUTS),
        (f"{SERVICE}/ModelInfer", asking(EMPTY_FILES).SerializeToString()),
        (f"{SERVICE}/ModelInfer", asking(MANY_NUMBERS).SerializeToString()),
    ],
    ids=["images", "inputs", "files", "numbers"],
)
def test_messages_of_too_many_parts_are_refused_unparsed(channel, method, raw):
    details = refusal(channel.unary_unary(f"/{method}"), raw)
    assert details.startswith("the request has more than 10000 fields, or more than 4194304 bytes")


def test_what_is_no_message_is_told_so_at_any_length(channel):
    call = channel.unary_unary(f"/{SERVICE}/ModelInfer")
    for raw in (b"\xff" * MEGABYTE, b"\x2a\xff\xff\xff\xff\x0f" + bytes(MEGABYTE), b"\x0f" * 99):
        assert refusal(call, raw).startswith("the request cannot be parsed")


@pytest.mark.parametrize("kind", [pb.ModelInferRequest, ClassifyRequest])
def test_no_field_is_found_where_the_parser_finds_none(kind):
    """Else a message that can be parsed would be refused, or a large one not counted."""
    rng = random.Random(20261121)
    sound = sound_requests()["ModelInfer"] + requests_to("Classify")
    counted = 0
    for _ in range(3000):
        raw = mutated(rng, sound)
        with suppress(DecodeError):
            kind.FromString(raw)
            assert not has_more_fields(raw, kind.DESCRIPTOR, len(raw), len(raw))
            assert not raw or has_more_fields(raw, kind.DESCRIPTOR, 0, 0)
            counted += 1
    assert counted > 300


def test_long_words_are_quoted_short(stub):
    for request in (
        pb.ModelInferRequest(model_name="\U0001f9e6" * MEGABYTE),
        pb.ModelInferRequest(model_version="x" * MEGABYTE),
    ):
        assert len(refusal(stub.ModelInfer, request, CODES.NOT_FOUND)) <= MAX_DETAILS


def test_models_and_versions_that_are_not_served(stub):
    for call, empty in (
        (stub.ModelInfer, partial(pb.ModelInferRequest, inputs=[IMAGES])),
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
    for terms in ({"timeout": 0}, {"timeout": HUGE}, {"priority": 0}, {"priority": HUGE}):
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


def sound_requests() -> dict[str, list[bytes]]:
    small = jpeg(PURE["red"], (64, 48))
    named = of_files(
        [small, small], outputs=[("logits", 2), "embedding"], timeout=10**7, priority=2
    )
    named.model_name, named.model_version, named.id = "colours", "1", "7"
    typed = asking(tensor("BYTES", (1, 1), bytes_contents=[small]), outputs=[("probabilities", 1)])
    vector = asking(tensor("UINT8", (1, len(small))), small)
    pixels = asking(tensor("UINT8", (1, 224, 224, 3), uint_contents=[7] * 9))
    infers = [one.SerializeToString() for one in (named, typed, vector, pixels)]
    model = pb.ModelMetadataRequest(name="colours", version="1").SerializeToString()
    index = pb.RepositoryIndexRequest(ready=True).SerializeToString()
    return {
        "ModelInfer": infers, "ModelMetadata": [model], "ModelConfig": [model],
        "ModelReady": [model], "RepositoryIndex": [index],
    }  # fmt: skip


def failed_inside(server: Server) -> int:
    """Errors in the log that are not the line of a request."""
    return sum('"error"' in line and '"packshot.access"' not in line for line in server.lines)


def test_mutated_requests_never_fail_inside(server, channel):
    rng = random.Random(20261121)
    codes: Counter[str] = Counter()
    failures = failed_inside(server)
    for method, sound in sound_requests().items():
        ask = channel.unary_unary(f"/{SERVICE}/{method}")  # bytes as they are
        count = 1200 if method == "ModelInfer" else 100
        calls = (ask.future(mutated(rng, sound), timeout=TIMEOUT) for _ in range(count))
        for answer in answers(calls, in_flight=16):
            codes[answer.code().name if isinstance(answer, grpc.RpcError) else "OK"] += 1
            if isinstance(answer, grpc.RpcError):
                assert not INSIDES.search(answer.details()), answer
    # RESOURCE_EXHAUSTED and DEADLINE_EXCEEDED: the parameter `timeout` was hit, and is too short.
    in_time = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}
    assert codes.keys() <= in_time | {"RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}, codes
    assert min(codes[code] for code in in_time) > 20, codes
    assert failed_inside(server) == failures
    assert server.metric("packshot_images_in_progress") == 0
    reply = infer(GRPCInferenceServiceStub(channel), of_files(outputs=[("logits", 1)]))
    assert [text.split(":")[2] for text in texts(reply)] == list(PURE)
