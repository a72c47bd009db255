"""ClassifyStream: whole catalogues through real servers that stop, come back or stay away."""

import itertools
import socket
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from processes import FAKE_SERVING, TIMEOUT, serving, until
from tiny import PURE, jpeg, tiny_bundle

import packshot.stream
from packshot import Client
from packshot.errors import InvalidInput, Unauthenticated, Unavailable
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import (
    ClassifierServicer,
    ClassifierStub,
    add_ClassifierServicer_to_server,
)

SMALL = {label: jpeg(colour, (64, 64)) for label, colour in PURE.items()}
COLOURS = list(SMALL)


def catalogue(count: int):
    """Ids that tell the right answer: "7-green"."""
    for number in range(count):
        label = COLOURS[number % 3]
        yield f"{number}-{label}", SMALL[label]


def assert_all_answered(results, count: int) -> None:
    answered = Counter(result.name for result in results)
    assert answered == Counter(name for name, _ in catalogue(count))
    assert all(result.name.endswith(f"-{result.label}") for result in results)


def stream_threads() -> list[str]:
    """Ours, and those in which gRPC reads requests."""
    names = [thread.name for thread in threading.enumerate()]
    return [name for name in names if "packshot" in name or "consume_request" in name]


@pytest.fixture
def quick_attempts(monkeypatch):
    monkeypatch.setattr(packshot.stream, "PAUSES_SECONDS", (0.01, 0.02, 0.03))


def test_a_thousand_images_are_each_answered_once_with_the_right_label(server):
    with Client(server.target) as client:
        results = list(client.classify_stream(catalogue(1000), top_k=2))
    assert_all_answered(results, 1000)
    assert {(r.model, r.version, r.engine) for r in results} == {("colours", 1, "fp32")}
    assert {len(r.predictions) for r in results} == {2}
    handled = (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="ClassifyStream",'
        'grpc_service="packshot.v1.Classifier",grpc_type="bidi_stream"}'
    )
    until(lambda: server.metric(handled) == 1)
    until(lambda: not stream_threads())


def test_bad_images_get_their_errors_among_the_others(server, tmp_path):
    whole = jpeg(PURE["red"])

    def items():
        yield from catalogue(60)
        yield "text", b"not a picture"
        yield "missing", tmp_path / "missing.jpg"
        yield "half", whole[: len(whole) // 2]

    with Client(server.target) as client:
        results = {result.name: result for result in client.classify_stream(items())}
    bad = {name: results.pop(name).reason for name in ("text", "missing", "half")}
    assert bad == {"text": "not_an_image", "missing": "unreadable", "half": "damaged"}
    assert_all_answered(results.values(), 60)


def test_logits_and_model_of_a_stream(server):
    with Client(server.target) as client:
        (result,) = client.classify_stream([("one", SMALL["blue"])], include_logits=True)
        assert result.logits.index(max(result.logits)) == 2
        assert list(client.classify_stream([])) == []
    with Client(server.target, model="shoes") as client:
        (result,) = client.classify_stream([("one", SMALL["blue"])])
    assert result.reason == "not_found"
    assert "'shoes'" in result.error


def test_an_id_must_not_be_given_twice_while_unanswered(server):
    items = [("a", SMALL["red"])] * 2
    with Client(server.target) as client:
        with pytest.raises(InvalidInput, match="'a' is given again"):
            list(client.classify_stream(items))
        with pytest.raises(InvalidInput, match="top_k is -1"):
            client.classify_stream(items, top_k=-1)
    until(lambda: not stream_threads())


def test_an_id_is_any_text(server):
    ids = ["caf\udce9.jpg", "", "0", "a\0b", "x" * 100_000]
    with Client(server.target) as client:
        results = list(client.classify_stream((name, SMALL["red"]) for name in ids))
    assert sorted(result.name for result in results) == sorted(ids)
    assert {result.label for result in results} == {"red"}


def test_an_error_of_the_source_reaches_the_caller(server):
    def items():
        yield "a", SMALL["red"]
        raise KeyError("the catalogue's own")

    with Client(server.target) as client, pytest.raises(KeyError, match="catalogue"):
        list(client.classify_stream(items()))
    until(lambda: not stream_threads())


def test_an_abandoned_stream_reads_no_further_and_leaves_no_thread(server):
    read = []

    def endless():
        for number in itertools.count():
            read.append(number)
            yield str(number), SMALL["green"]

    with Client(server.target) as client:
        results = client.classify_stream(endless())
        assert [next(results).label for _ in range(5)] == ["green"] * 5
        results.close()
        assert len(read) <= packshot.stream.MAX_UNANSWERED_IMAGES + 5
        until(lambda: not stream_threads())
        until(lambda: server.metric("packshot_images_in_progress") == 0)


def test_clients_that_go_away_do_the_server_no_harm(server):
    with Client(server.target) as client:
        for _ in range(30):
            results = client.classify_stream((str(n), SMALL["red"]) for n in itertools.count())
            assert next(results).label == "red"
            results.close()
        assert client.classify(SMALL["red"])[0].label == "red"
    assert server.process.poll() is None


def test_results_come_while_the_source_waits_for_them(server):
    """A source that wants answers before it gives more does not wait for ever."""
    seen: list[str] = []

    def items():
        yield "first", SMALL["red"]
        yield "second", SMALL["red"]
        until(lambda: server.metric(answered) == before + 2)
        yield "third", SMALL["red"]
        assert seen, "an answer was there, and the source was asked for more"
        yield "fourth", SMALL["red"]

    answered = 'packshot_images_total{model="colours",result="ok"}'
    before = server.metric(answered)
    with Client(server.target) as client:
        for result in client.classify_stream(items()):
            seen.append(result.name)
    assert sorted(seen) == ["first", "fourth", "second", "third"]


def test_what_is_unanswered_at_a_restart_is_answered_by_the_next_server(store):
    with serving("--models", store) as first:
        port = first.target.rpartition(":")[2]
        results = []
        with Client(first.target, timeout_seconds=TIMEOUT) as client:
            stream = client.classify_stream(catalogue(1000))
            results += itertools.islice(stream, 300)
            tiny_bundle(store)
            assert first.stop() == 0
            assert "cut off" not in first.log
            with serving("--models", store, "--port", port) as second:
                results += stream
                assert second.stop() == 0
    assert_all_answered(results, 1000)
    assert {result.version for result in results} == {1, 2}


def test_a_killed_server_is_survived_too(store):
    with serving("--models", store) as first:
        port = first.target.rpartition(":")[2]
        results = []
        with Client(first.target, timeout_seconds=TIMEOUT) as client:
            stream = client.classify_stream(catalogue(400))
            results += itertools.islice(stream, 50)
            first.process.kill()
            first.end()
            with serving("--models", store, "--port", port):
                results += stream
    assert_all_answered(results, 400)


def test_a_server_that_is_gone_for_good_is_an_error(store, quick_attempts):
    with serving("--models", store) as server, Client(server.target) as client:
        stream = client.classify_stream(catalogue(400))
        assert next(stream).error is None
        server.process.kill()
        server.end()
        with pytest.raises(Unavailable, match=server.target):
            list(stream)
    until(lambda: not stream_threads())


def test_a_server_that_never_was_there_is_an_error(quick_attempts):
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with Client(target) as client, pytest.raises(Unavailable, match=target):
        list(client.classify_stream(catalogue(3)))


def test_an_error_that_trying_again_cannot_mend_is_raised_at_once(store):
    tokens = store.parent / "tokens"
    tokens.write_text("a-token-that-nobody-guesses")
    with serving("--models", store, "--token-file", tokens) as server:
        with Client(server.target) as client, pytest.raises(Unauthenticated):
            list(client.classify_stream(catalogue(3)))
        started = (
            'grpc_server_started_total{grpc_method="ClassifyStream",'
            'grpc_service="packshot.v1.Classifier",grpc_type="bidi_stream"}'
        )
        assert server.metric(started) == 1


def test_what_is_too_large_for_the_server_does_not_end_the_stream(store):
    def items():
        for number, (name, image) in enumerate(catalogue(100)):
            yield name, image
            if number % 10 == 0:
                yield f"large {number}", image + bytes(70_000)

    limits = ("--max-message-bytes", 65_536, "--max-image-bytes", 60_000)
    with serving("--models", store, *limits) as server:
        with Client(server.target) as client:
            results = list(client.classify_stream(items()))
        large = [result for result in results if result.name.startswith("large")]
        assert [result.reason for result in large] == ["too_many_bytes"] * 10
        assert_all_answered([result for result in results if result not in large], 100)
        with Client(server.target, model="shoes") as client:
            (result,) = client.classify_stream([("b", SMALL["red"] + bytes(65_000))])
        assert result.reason == "not_found"


class StillLoading(ClassifierServicer):
    """Cannot say what it takes when it is asked first, and wants no retry of that call."""

    def __init__(self):
        self.asked = 0

    def GetModel(self, request, context):  # noqa: N802
        self.asked += 1
        if self.asked == 1:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "-1"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return pb.GetModelResponse(max_image_bytes=100_000)


def test_an_image_waits_for_the_server_that_is_to_say_whether_it_is_too_large(quick_attempts):
    loading = StillLoading()
    server = grpc.server(ThreadPoolExecutor(1))
    add_ClassifierServicer_to_server(loading, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", timeout_seconds=TIMEOUT) as client:
            results = list(client.classify_stream([("large", bytes(200_000))]))
        assert [(result.name, result.reason) for result in results] == [("large", "too_many_bytes")]
        assert loading.asked == 2
    finally:
        server.stop(None).wait()


ONE_BY_ONE = ("--engines", "fp32", "--run-ms", 30, "--lanes", 1, "--max-batch", 1)
REFUSED = "packshot_requests_refused_total"


def test_images_of_a_stream_wait_as_long_as_it_takes(store, tmp_path):
    options = (*ONE_BY_ONE, "--control", tmp_path, "--default-timeout-ms", 100)
    with serving("--models", store, *options, program=FAKE_SERVING) as server:
        with Client(server.target) as client:
            answered = list(client.classify_stream(catalogue(40)))
        assert {result.error for result in answered} == {None}
        assert len(answered) == 40
        assert server.metric(REFUSED) == 0


def test_what_waits_for_room_is_answered_by_the_version_that_is_swapped_in(tmp_path):
    tiny_bundle(tmp_path / "models")
    room = ("--max-queued-images", 4, "--max-images-per-request", 4, "--reload-seconds", 0.05)
    options = (*ONE_BY_ONE, *room, "--control", tmp_path)
    with serving("--models", tmp_path / "models", *options, program=FAKE_SERVING) as server:
        with grpc.insecure_channel(server.target) as channel:
            image = pb.Image(encoded=SMALL["red"])
            call = ClassifierStub(channel).ClassifyStream(
                pb.ClassifyStreamRequest(id=str(number), image=image) for number in range(60)
            )
            found = []
            for response in call:
                if len(found) == 5:
                    tiny_bundle(tmp_path / "models")
                found.append((response.version, response.result.error.reason))
        assert Counter(reason for _, reason in found) == {"": 60}
        assert {version for version, _ in found} == {1, 2}
        assert server.metric(REFUSED) == 0


def test_a_client_that_takes_no_answers_is_not_read_from(server):
    """Ids come back: long ones fill what the network holds after a few answers."""
    sent = []

    def endless():
        for number in itertools.count():
            sent.append(number)
            image = pb.Image(encoded=SMALL["red"] + bytes(50_000))
            yield pb.ClassifyStreamRequest(id=f"{number}".ljust(60_000), image=image)

    sample = 'packshot_images_total{model="colours",result="ok"}'
    before = server.metric(sample)
    fixed = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 65_536)]
    with grpc.insecure_channel(server.target, fixed) as channel, Client(server.target) as client:
        call = ClassifierStub(channel).ClassifyStream(endless())
        until(lambda: server.metric(sample) - before >= 64)
        others = client.classify([SMALL["green"]] * 200)  # meanwhile the server does other work
        assert {result.label for result in others} == {"green"}
        # The window, and what the two ends of the connection hold.
        assert server.metric(sample) - before - 200 < 64 + 40
        assert len(sent) < 64 + 200
        assert server.metric("packshot_images_in_progress") <= 64
        for _ in range(300):  # and reads on as soon as it is read from
            assert next(call).result.predictions[0].label == "red"
        call.cancel()
