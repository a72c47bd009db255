"""Bytes that no honest client sends: to connections, as requests and as images.

The server goes on, says nothing of its insides, and its memory stays where it was.
"""

import random
import re
import socket
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress

import grpc
import numpy as np
import pytest
from http2 import (
    DATA,
    END_STREAM,
    HEADERS,
    PREFACE,
    connect,
    frame,
    frames,
    half_a_message,
    hello,
    request_headers,
)
from PIL import Image
from processes import FAKE_SERVING, TIMEOUT, Server, serving, until
from tiny import PURE, encoded, jpeg, tiny_bundle

from packshot import Client
from packshot.errors import ImageReason
from packshot.v1 import classifier_pb2 as pb

SEED = 20261121
RED = jpeg(PURE["red"], (64, 48))
SERVICE = "/packshot.v1.Classifier/"
MEGABYTE = 1 << 20
ROOM_BYTES = (
    96 * MEGABYTE
)  # threads, arenas and caches settle; a leak of 10,000 images does not fit
# Python's exceptions, its files and lines, and folders: none of a client's business.
INSIDES = re.compile(
    r"Error|Exception|Traceback|Unexpected|<class|\.py\b|line \d|/[a-z]+/|0x[0-9a-f]"
)


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    store = tmp_path_factory.mktemp("models")
    tiny_bundle(store)
    with serving("--models", store, "--max-image-pixels", 1_000_000) as server:
        yield server
        assert server.stop() == 0


@pytest.fixture
def channel(fuzzed: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(fuzzed.target) as channel:
        yield channel


def still_right(server: Server) -> None:
    with Client(server.target, timeout_seconds=TIMEOUT) as client:
        assert [r.label for r in client.classify([jpeg(c) for c in PURE.values()])] == list(PURE)
    assert server.page("/livez") == (200, "ok\n")
    assert server.metric("packshot_images_in_progress") == 0


def mutated(rng: random.Random, sound: list[bytes]) -> bytes:
    """Cut, bits flipped, a part overwritten, two joined, bytes put in, or nothing but noise."""
    data = bytearray(rng.choice(sound))
    at = rng.randrange(len(data) + 1)
    match rng.randrange(6):
        case 0:
            del data[at:]
        case 1:
            for _ in range(rng.choice((1, 1, 2, 8, 64))):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        case 2:
            data[at : at + rng.randrange(1, 33)] = rng.randbytes(rng.randrange(33))
        case 3:
            other = rng.choice(sound)
            data[at:] = other[rng.randrange(len(other)) :]
        case 4:
            data[at:at] = rng.choice((b"\xff", b"\0", b"\x80")) * rng.randrange(1, 300)
        case 5:
            data[:] = rng.randbytes(rng.randrange(2000))
    return bytes(data)


def pictures() -> list[bytes]:
    """Of every format that is taken, and of the modes that are decoded by ways of their own."""
    rng = np.random.default_rng(SEED)
    smooth = np.linspace(0, 255, 48 * 64 * 3).reshape(48, 64, 3)
    colour = Image.fromarray((smooth * 0.8 + rng.integers(0, 50, smooth.shape)).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(colour, "JPEG", exif=exif),
        encoded(colour, "JPEG", progressive=True, quality=40),
        encoded(colour.convert("CMYK"), "JPEG"),
        encoded(colour, "PNG"),
        encoded(colour.convert("RGBA"), "PNG"),
        encoded(colour.convert("P"), "PNG", transparency=3),
        encoded(Image.fromarray(np.asarray(colour.convert("L"), np.uint16) * 200), "PNG"),
        encoded(colour, "WEBP"),
        encoded(colour.convert("RGBA"), "WEBP", lossless=True),
        encoded(colour, "GIF"),
        encoded(colour, "GIF", save_all=True, append_images=[colour.rotate(90)]),
        encoded(colour, "BMP"),
        encoded(colour.convert("P"), "BMP"),
        encoded(colour, "TIFF"),
        encoded(colour, "TIFF", compression="tiff_lzw"),
        encoded(colour, "TIFF", compression="jpeg"),
    ]


def answers(calls: Iterator[grpc.Future], in_flight: int) -> Iterator[object]:
    """Replies, or errors, of many calls, so many of them in flight at a time."""
    waiting: list[grpc.Future] = []
    for call in calls:
        waiting.append(call)
        if len(waiting) == in_flight:
            yield outcome(waiting.pop(0))
    yield from map(outcome, waiting)


def outcome(call: grpc.Future) -> object:
    error = call.exception(TIMEOUT)
    return call.result() if error is None else error


def test_ten_thousand_fuzzed_images(fuzzed, channel):
    rng, sound = random.Random(SEED), pictures()
    classify = channel.unary_unary(
        SERVICE + "Classify", pb.ClassifyRequest.SerializeToString, pb.ClassifyResponse.FromString
    )

    def calls(requests: int) -> Iterator[grpc.Future]:
        for _ in range(requests):
            images = [pb.Image(encoded=mutated(rng, sound)) for _ in range(31)]
            request = pb.ClassifyRequest(images=[*images, pb.Image(encoded=RED)])
            yield classify.future(request, timeout=TIMEOUT)

    reasons: Counter[str] = Counter()

    def run(requests: int) -> None:
        for reply in answers(calls(requests), in_flight=4):
            assert isinstance(reply, pb.ClassifyResponse), reply
            *fuzz, good = reply.results
            assert good.predictions[0].label == "red", "a sound one beside them"
            for result in fuzz:
                reasons[result.error.reason] += 1
                assert bool(result.predictions) != result.HasField("error")
                assert not INSIDES.search(result.error.message), result.error
                if result.error.reason == "damaged":  # in our words, not in a decoder's
                    assert result.error.message.endswith("image cannot be decoded")

    run(60)
    before = fuzzed.memory_bytes
    run(265)
    assert reasons.total() == 325 * 31 > 10_000
    assert reasons.keys() <= {"", *ImageReason.__args__}
    assert min(reasons[r] for r in ("", "damaged", "not_an_image", "too_many_pixels")) > 10, reasons
    assert fuzzed.memory_bytes < before + ROOM_BYTES
    still_right(fuzzed)


def requests_to(method: str) -> list[bytes]:
    image = pb.Image(encoded=RED)
    terms = {"model": "colours", "top_k": 2, "min_confidence": 0.5}
    match method:
        case "Classify":
            request = pb.ClassifyRequest(
                images=[image, pb.Image(pixels=bytes(300))], priority=pb.PRIORITY_BULK, **terms
            )
        case "Embed":
            request = pb.EmbedRequest(images=[image], normalize=True, model="colours")
        case "GetModel":
            request = pb.GetModelRequest(model="colours")
        case "ClassifyStream":
            request = pb.ClassifyStreamRequest(id="1", image=image, **terms)
    return [request.SerializeToString()]


# INVALID_ARGUMENT also for bytes that are no message: gRPC alone would answer UNKNOWN, with the
# text of Python's exception. NOT_FOUND: the name of the model was hit.
EXPECTED = {"OK", "INVALID_ARGUMENT", "NOT_FOUND"}


@pytest.mark.parametrize(
    ("method", "count"), [("Classify", 4000), ("Embed", 2500), ("GetModel", 2000)]
)
def test_mutated_requests(fuzzed, channel, method, count):
    rng, sound = random.Random(SEED), requests_to(method)
    ask = channel.unary_unary(SERVICE + method)  # bytes as they are
    codes: Counter[str] = Counter()

    def run(number: int) -> None:
        calls = (ask.future(mutated(rng, sound), timeout=TIMEOUT) for _ in range(number))
        for answer in answers(calls, in_flight=32):
            codes[answer.code().name if isinstance(answer, grpc.RpcError) else "OK"] += 1
            if isinstance(answer, grpc.RpcError):
                assert not INSIDES.search(answer.details()), answer

    run(count // 4)
    before, errors = fuzzed.memory_bytes, fuzzed.log.count('"level":"error"')
    run(count - count // 4)
    assert codes.keys() == EXPECTED, codes
    assert fuzzed.memory_bytes < before + ROOM_BYTES
    assert fuzzed.log.count('"level":"error"') == errors == 0
    still_right(fuzzed)


def test_mutated_messages_in_streams(fuzzed, channel):
    """What is no message ends its stream; what is one gets an answer, be it an error."""
    rng, sound = random.Random(SEED), requests_to("ClassifyStream")
    ask = channel.stream_stream(SERVICE + "ClassifyStream")
    ends: Counter[str] = Counter()
    sent = answered = 0
    while sent < 1500:
        messages = [*sound, *(mutated(rng, sound) for _ in range(rng.randrange(1, 4)))]
        sent += len(messages)
        call = ask(iter(messages), timeout=TIMEOUT)
        with suppress(grpc.RpcError):  # looked at below
            for raw in call:
                answered += 1
                reply = pb.ClassifyStreamResponse.FromString(raw)
                assert reply.result.error.reason != "internal"
                assert not INSIDES.search(reply.result.error.message)
        assert not INSIDES.search(call.details()), call
        ends[call.code().name] += 1
    assert ends.keys() == {"OK", "INVALID_ARGUMENT"}, ends
    assert answered > 0
    assert '"level":"error"' not in fuzzed.log
    still_right(fuzzed)


def test_junk_on_the_grpc_port(fuzzed):
    rng = random.Random(SEED)
    sound = [
        hello() + request_headers(SERVICE + "GetModel") + half_a_message(),
        hello() + frame(4, rng.randbytes(6)) + frame(6, bytes(8)) + frame(8, bytes(4)),
        b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + rng.randbytes(506),  # TLS
    ]
    files, before = fuzzed.open_files, fuzzed.memory_bytes
    for junk in [*sound, *(mutated(rng, sound) for _ in range(400))]:
        throw(fuzzed.target, junk)
    for _ in range(8):
        throw(fuzzed.target, rng.randbytes(MEGABYTE))
        throw(fuzzed.target, hello() + rng.randbytes(MEGABYTE))
        throw(fuzzed.target, hello() + request_headers(SERVICE + "Classify") + bytes(MEGABYTE))
    still_right(fuzzed)
    until(lambda: fuzzed.open_files <= files + 2)
    assert fuzzed.memory_bytes < before + ROOM_BYTES


def throw(target: str, junk: bytes) -> None:
    """Sends all of it, or as much as is taken, and waits until the other side hangs up."""
    with connect(target) as connection, suppress(ConnectionError):
        with suppress(OSError):  # it hangs up first
            connection.sendall(junk)
            connection.shutdown(socket.SHUT_WR)
        while connection.recv(4096):
            pass


def test_connections_that_fall_silent_hold_up_nobody_and_are_closed(store, tmp_path):
    """Of each kind 100: nothing said, half of a greeting, a greeting, and half of a request."""
    starts = [b"", PREFACE[:12], hello(), hello() + request_headers(SERVICE + "Classify")]
    starts.append(starts[-1] + half_a_message())
    patience = ("--control", tmp_path, "--patience-ms", 3000)
    with serving("--models", store, *patience, program=FAKE_SERVING) as server, ExitStack() as held:
        files, before = server.open_files, server.memory_bytes
        for start in starts:
            for _ in range(100):
                connection = held.enter_context(connect(server.target))
                connection.sendall(start)
        until(lambda: server.open_files >= files + 500)
        still_right(server)
        assert server.memory_bytes < before + ROOM_BYTES
        until(lambda: server.open_files <= files + 2)
        still_right(server)


def test_half_sent_requests_of_a_client_that_is_gone_do_not_keep_the_others_out(store, tmp_path):
    """As many as the server takes at a time."""
    patience = ("--control", tmp_path, "--patience-ms", 3000)
    with (
        serving("--models", store, *patience, program=FAKE_SERVING) as server,
        connect(server.target) as gone,
    ):
        numbers = range(1, 1001, 2)
        begun = b"".join(
            request_headers(SERVICE + "Classify", n) + half_a_message(n) for n in numbers
        )
        gone.sendall(hello() + begun)
        until(lambda: is_full(server))
        until(lambda: not is_full(server))
        assert server.metric(REFUSED) > 0
        still_right(server)


@pytest.mark.parametrize(
    "method", [SERVICE + "Classify", "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"]
)
def test_calls_without_a_message_are_answered_and_keep_nobody_out(fuzzed, method):
    begun = b"".join(
        request_headers(method, n) + frame(DATA, b"", flags=END_STREAM, stream=n)
        for n in range(1, 801, 2)
    )
    with connect(fuzzed.target) as empty:
        empty.sendall(hello() + begun)
        ended = (stream for kind, stream in frames(empty) if kind == HEADERS)
        assert {next(ended) for _ in range(400)} == set(range(1, 801, 2))
        still_right(fuzzed)


REFUSED = (
    'grpc_server_handled_total{grpc_code="RESOURCE_EXHAUSTED",grpc_method="GetModel",'
    'grpc_service="packshot.v1.Classifier",grpc_type="unary"}'
)
PROBE_SECONDS = 1.0  # a probe is repeated; one that came as its connection was closed is no answer


def is_full(server: Server) -> bool:
    with grpc.insecure_channel(server.target) as channel:
        asked = channel.unary_unary(SERVICE + "GetModel").future(b"", timeout=PROBE_SECONDS)
        return asked.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
