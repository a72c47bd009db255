"""The client and the `packshot` command against a real server."""

import contextlib
import csv
import io
import json
import os
import pty
import socket
import subprocess
import sys
import termios
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
from processes import ROOT, TIMEOUT, serving
from tiny import PURE, jpeg, tiny_bundle

from packshot import Client
from packshot.channel import check_target
from packshot.errors import InvalidInput, Unavailable
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer, add_ClassifierServicer_to_server

RED = jpeg(PURE["red"])


@pytest.fixture
def folder(tmp_path):
    """30 pictures in two sub-folders, colours in turn, and a file that is no picture."""
    colours = list(PURE.items())
    for number in range(30):
        label, colour = colours[number % 3]
        path = tmp_path / "shop" / ("a" if number < 15 else "b") / f"{number:02d}-{label}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(colour))
    (tmp_path / "shop" / "prices.csv").write_text("mug,3\n")
    return tmp_path / "shop"


def packshot(server, *arguments: object, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    verb, *rest = arguments
    return subprocess.run(
        [sys.executable, "-m", "packshot.cli", verb, "--target", server.target, *map(str, rest)],
        cwd=ROOT, input=stdin, capture_output=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip


def test_one_image_or_many(server):
    with Client(server.target) as client:
        assert [r.label for r in client.classify(jpeg(PURE["blue"]))] == ["blue"]
        assert client.classify([]) == []


def test_many_files_travel_in_few_requests_and_come_back_in_order(server, folder):
    paths = sorted(folder.rglob("*.jpg"))
    sample = (
        'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify",'
        'grpc_service="packshot.v1.Classifier",grpc_type="unary"}'
    )
    before = server.metric(sample)
    with Client(server.target, images_per_request=8) as client:
        results = client.classify(paths)
    assert server.metric(sample) - before == 4
    assert [result.name for result in results] == [str(path) for path in paths]
    assert all(result.name.endswith(f"{result.label}.jpg") for result in results)


def test_a_stream_reads_only_what_it_needs(server):
    read = []

    def endless():
        while True:
            read.append(1)
            yield jpeg(PURE["green"])

    with Client(server.target, images_per_request=2, requests_in_flight=2) as client:
        stream = client.classify_lazily(endless())
        assert [next(stream).label for _ in range(3)] == ["green"] * 3
        stream.close()
    assert len(read) <= 12


@pytest.mark.parametrize(
    "array",
    [np.zeros((224, 224, 3)), np.zeros((3, 224, 224), np.uint8), np.zeros(150528, np.uint8)],
)
def test_arrays_must_be_pixels(server, array):
    with Client(server.target) as client, pytest.raises(InvalidInput, match="expected uint8 RGB"):
        client.classify(array)


def test_what_cannot_be_sent_is_said_beside_what_can(server, tmp_path):
    huge = tmp_path / "huge.tif"
    with huge.open("wb") as file:
        file.truncate(100_000_000)  # a hole: no disk is used
    with Client(server.target) as client:
        results = client.classify([huge, "a\0b.jpg", jpeg(PURE["red"])])
    assert [result.reason for result in results] == ["too_many_bytes", "unreadable", None]
    assert "100000000 bytes; at most" in results[0].error
    with Client(server.target) as client, pytest.raises(InvalidInput, match="top_k is -1"):
        client.classify(jpeg(PURE["red"]), top_k=-1)


def test_requests_are_as_large_as_the_server_takes(store, folder):
    with (
        serving("--models", store, "--max-images-per-request", 4) as server,
        Client(server.target, images_per_request=8) as client,
    ):
        assert len(client.classify(sorted(folder.rglob("*.jpg")))) == 30


def padded(size: int) -> bytes:
    """A red picture of so many bytes."""
    return RED + bytes(size - len(RED))


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A server that takes less than clients send by default."""
    models = tmp_path_factory.mktemp("strict")
    tiny_bundle(models)
    limits = ("--max-message-bytes", 300_000, "--max-image-bytes", 200_000)
    with serving("--models", models, *limits) as server:
        yield server


@pytest.mark.parametrize("embedded", [False, True])
def test_what_is_too_large_for_the_server_does_not_fail_what_is_not(strict, embedded):
    pixels = np.zeros((400, 400, 3), np.uint8)
    images = [padded(250_000), *[padded(100_000)] * 8, padded(2_000_000), pixels, RED]
    with Client(strict.target, timeout_seconds=TIMEOUT) as client:
        assert client.model().max_image_bytes == 200_000
        assert client.model().max_message_bytes == 300_000
        found = client.embed(images) if embedded else client.classify(images)
        reasons = [one.reason for one in found]
    large = "too_many_bytes"
    assert reasons == [large, *[None] * 8, large, large, None]
    refused = 'packshot_images_total{model="colours",result="too_many_bytes"}'
    assert strict.metric(refused) == 0, "it was not sent"


def test_at_the_limit_of_a_message_nothing_fails_as_a_whole(store):
    limit = 65_536
    images = [padded(size) for size in range(limit - 60, limit + 3)]
    limits = ("--max-message-bytes", limit, "--max-image-bytes", limit)
    with serving("--models", store, *limits) as server, Client(server.target) as client:
        answers = client.classify(images), list(client.classify_stream(enumerate(images)))
    for results in answers:
        errors = sorted(result.reason or "" for result in results)
        assert (errors[0], errors[-1]) == ("", "too_many_bytes")


def test_the_server_is_asked_what_it_takes_where_it_matters_and_once(strict):
    asked = (
        'grpc_server_started_total{grpc_method="GetModel",'
        'grpc_service="packshot.v1.Classifier",grpc_type="unary"}'
    )
    for images in ([padded(2_000_000)], [RED, RED]):
        before = strict.metric(asked)
        with Client(strict.target, timeout_seconds=TIMEOUT) as client:
            assert client.classify(RED)[0].label == "red"
            assert next(client.classify_stream([("a", RED)])).label == "red"
            assert strict.metric(asked) == before
            for _ in range(3):
                client.classify(images)
                list(client.classify_stream([("large", padded(2_000_000))]))
        assert strict.metric(asked) == before + 1


class Reluctant(ClassifierServicer):
    """Refuses the first two times, as an overloaded server does, or one that has just stopped."""

    def __init__(self, code):
        self.calls = 0
        self._code = code

    def GetModel(self, request, context):  # noqa: N802
        return pb.GetModelResponse(max_images_per_request=8)

    def Classify(self, request, context):  # noqa: N802
        self.calls += 1
        if self.calls <= 2:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "10"),))
            context.abort(self._code, "later")
        prediction = pb.Prediction(label="red", probability=1)
        return pb.ClassifyResponse(results=[pb.ImageResult(predictions=[prediction])])


@pytest.mark.parametrize(
    "code", [grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.CANCELLED], ids=str
)
def test_a_server_that_refuses_is_asked_again_also_with_a_large_image(code):
    reluctant = Reluctant(code)
    server = grpc.server(ThreadPoolExecutor(1), options=[("grpc.max_receive_message_length", -1)])
    add_ClassifierServicer_to_server(reluctant, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with Client(f"127.0.0.1:{port}", timeout_seconds=TIMEOUT) as client:
            assert client.classify(bytes(5_000_000))[0].label == "red"
        assert reluctant.calls == 3
    finally:
        server.stop(None).wait()


def test_a_request_above_the_servers_message_limit_is_no_overload(store):
    with (
        serving(
            "--models", store, "--max-message-bytes", 100_000, "--max-image-bytes", 90_000
        ) as server,
        Client(server.target) as client,
        pytest.raises(InvalidInput, match="send fewer or smaller images"),
    ):
        client.classify(bytes(200_000))


def test_an_unreachable_server_is_named():
    with socket.create_server(("127.0.0.1", 0)) as unused:
        target = f"127.0.0.1:{unused.getsockname()[1]}"
    with Client(target) as client, pytest.raises(Unavailable, match=target):
        client.classify(jpeg(PURE["red"]))


@pytest.mark.parametrize(
    "target",
    [
        "", "127.0.0.1", "shop.example", ":8001", "127.0.0.1:", "127.0.0.1:0", "127.0.0.1:65536",
        "127.0.0.1:99999", "127.0.0.1:-1", "shop:http", "::1:8001", "::1", "[::1]", "[shop]:1",
        "http://127.0.0.1:8001", "https://shop:1/", "a b:1", "127.0.0.1:8001/", "shop:1\n",
        "dns:///shop:99999", "dns:shop:0", f"shop:{'9' * 5000}",
    ],
)  # fmt: skip
def test_a_target_that_cannot_be_one_is_refused(target):
    with pytest.raises(InvalidInput, match=r"must be host:port.*the port from 1 to 65535") as told:
        Client(target)
    assert f"the target is {target!r}" in str(told.value)


@pytest.mark.parametrize(
    "target",
    [
        "127.0.0.1:1", "shop_1.example:65535", "[::1]:8001", "[fe80::1%eth0]:8001", "localhost:1",
        "dns:///shop.example", "dns:///packshot-headless:8001", "dns:shop:8001",
        "dns://127.0.0.1:53/shop:8001", "dns:///[::1]:8001", "dns:///[::1]", "unix:/run/a.sock",
        "unix:a:99999", "unix:///run/a.sock", "unix-abstract:a", "vsock:2:100000", "xds:///shop",
        "ipv4:127.0.0.1:1,127.0.0.2:2", "ipv6:[::1]:1",
    ],
)  # fmt: skip
def test_the_names_that_grpc_knows_are_left_to_it(target):
    check_target(target)


@pytest.mark.parametrize("name", ["dns:///localhost:{}", "dns:127.0.0.1:{}", "ipv4:127.0.0.1:{}"])
def test_a_name_of_grpcs_reaches_the_server(server, name):
    with Client(name.format(server.target.rpartition(":")[2])) as client:
        assert client.model().model == "colours"


def test_options_are_checked():
    with pytest.raises(InvalidInput, match="timeout_seconds is 0"):
        Client("127.0.0.1:1", timeout_seconds=0)


def test_classify_prints_a_line_a_file(server, folder):
    done = packshot(server, "classify", "--top-k", 2, folder)
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0, done.stderr
    assert len(lines) == 30
    assert lines[0].startswith(f"{folder}/a/00-red.jpg  red ")
    assert "blue" not in lines[0] or "green" not in lines[0], "two labels only"


def test_on_a_terminal_the_results_stand_above_a_progress_bar(server, folder):
    terminal, inside = pty.openpty()
    termios.tcsetwinsize(inside, (24, 200))
    command = [sys.executable, "-m", "packshot.cli", "classify", "--target", server.target]
    done = subprocess.Popen([*command, str(folder)], cwd=ROOT, stdout=inside, stderr=inside)
    os.close(inside)
    shown = b""
    with contextlib.suppress(OSError):  # how a terminal says that its other end was closed
        while chunk := os.read(terminal, 4096):
            shown += chunk
    os.close(terminal)
    assert done.wait(TIMEOUT) == 0
    assert b"30/30" in shown
    screen: list[bytes] = []
    for line in shown.split(b"\n"):
        screen.append(line.rstrip(b"\r").rsplit(b"\r", 1)[-1])
    assert sum(b"%" in line and b".jpg  " in line for line in screen) == 30


def test_classify_globs_and_csv(server, folder):
    done = packshot(server, "classify", "--csv", "--top-k", 1, f"{folder}/**/*-blue.jpg")
    rows = list(csv.DictReader(io.StringIO(done.stdout.decode())))
    assert len(rows) == 10
    assert {row["label"] for row in rows} == {"blue"}
    assert all(float(row["probability"]) > 0.9 for row in rows)


def test_classify_json_from_stdin(server):
    done = packshot(server, "classify", "--json", "-", stdin=jpeg(PURE["red"]))
    (line,) = done.stdout.splitlines()
    answer = json.loads(line)
    assert (answer["name"], answer["predictions"][0]["label"]) == ("-", "red")
    assert (answer["model"], answer["version"], answer["engine"]) == ("colours", 1, "fp32")


def test_classify_reports_bad_files_beside_good_ones(server, folder):
    done = packshot(server, "classify", folder / "prices.csv", folder / "a" / "00-red.jpg")
    bad, good = done.stdout.decode().splitlines()
    assert done.returncode == 1
    assert "ERROR not_an_image" in bad
    assert "  red " in good


@pytest.mark.parametrize("options", [(), ("--csv",), ("--json",), ("--bulk", "--json")])
def test_names_that_are_not_utf8_can_be_told(server, tmp_path, options):
    old = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg"))
    old.write_bytes(jpeg(PURE["red"]))
    done = packshot(server, "classify", *options, tmp_path, old)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.decode().splitlines()[-2:]:
        name = json.loads(line)["name"] if "--json" in options else line
        assert name.startswith(f"{tmp_path}/caf\\xe9.jpg")


def test_classify_says_what_is_missing(server, tmp_path):
    done = packshot(server, "classify", tmp_path / "no*.jpg")
    assert done.returncode == 2
    assert b"no such file" in done.stderr
    (tmp_path / "empty").mkdir()
    assert b"no image in" in packshot(server, "classify", tmp_path / "empty").stderr


def test_model_command(server):
    model = json.loads(packshot(server, "model").stdout)
    assert model["engine"] == "fp32"
    assert "answers_differ" in model["refused"]["int8"]
