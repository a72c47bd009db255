"""What the Open Inference Protocol's methods cannot use, down to bytes that are no message."""

import random
from collections import Counter
from contextlib import suppress

import grpc
import pytest
from google.protobuf.message import DecodeError
from open_inference_calls import (
    CODES,
    FILES,
    SERVICE,
    asking,
    infer,
    of_files,
    prefixed,
    refusal,
    tensor,
    texts,
)
from processes import TIMEOUT, Server
from test_fuzz import INSIDES, answers, mutated, requests_to
from tiny import PURE, jpeg

from packshot.oip import open_inference_pb2 as pb
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from packshot.v1.classifier_pb2 import ClassifyRequest
from serving.api.answering import MAX_DETAILS
from serving.api.fields import has_more_fields
from serving.api.tensors import MAX_TYPED


@pytest.fixture
def channel(server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return GRPCInferenceServiceStub(channel)


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
