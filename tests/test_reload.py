"""Another version while requests come: swapped in, or kept out, and no request fails."""

import itertools
import shutil
import signal

import grpc
import pytest
from processes import TIMEOUT, serving, until
from tiny import PURE, big_image, jpeg, overwrite, tiny_bundle

from packshot import Client
from packshot.atomic import write_whole
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = jpeg(PURE["red"])


@pytest.fixture
def followed(store):
    """A server that follows what is in the store, and a client of it."""
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        yield server, client


def test_versions_come_go_and_come_back_without_a_failed_request(store, followed):
    server, client = followed
    seen: list[int] = []

    def served(version: int) -> bool:
        (result,) = client.classify(RED)
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


def test_a_bad_version_stays_out_and_says_why_until_it_is_repaired(store, followed, tmp_path):
    server, client = followed
    tiny_bundle(tmp_path / "elsewhere")
    second = tiny_bundle(tmp_path / "elsewhere")
    sound = (second / "model.onnx").read_bytes()
    overwrite(second / "model.onnx", b"not what the manifest says")
    second.rename(store / "colours" / "2")
    until(lambda: client.model().rejected == {"2": "damaged"})
    assert client.classify(RED)[0].version == 1
    assert "2 stays out" in server.log
    damaged = 'packshot_reloads_total{model="colours",result="damaged"}'
    assert server.metric(damaged) == 1
    server.process.send_signal(signal.SIGHUP)
    until(lambda: server.metric(damaged) == 2)  # tried again, though nothing has changed
    overwrite(store / "colours" / "2" / "model.onnx", sound)
    until(lambda: client.model().version == 2)  # it had been half a copy
    assert client.model().rejected == {}


def test_a_bad_version_that_is_removed_is_forgotten(store, followed):
    _, client = followed
    (store / "colours" / "2").mkdir()
    (store / "colours" / "2" / "manifest.json").write_text("half a")
    until(lambda: client.model().rejected == {"2": "damaged"})
    shutil.rmtree(store / "colours" / "2")
    until(lambda: client.model().rejected == {})
    assert client.model().version == 1


def test_a_release_of_what_is_not_there_changes_nothing_and_is_told(store, followed):
    server, client = followed
    tiny_bundle(store)
    until(lambda: client.model().version == 2)
    released = store / "colours" / "released"
    write_whole(released, b"9\n")
    until(lambda: client.model().rejected == {"released": "not_found"})
    released.unlink()
    until(lambda: client.model().rejected == {})
    write_whole(released, b"9" * 5000)  # too long for a number
    until(lambda: client.model().rejected == {"released": "failed"})
    assert server.metric('packshot_reloads_total{model="colours",result="failed"}') == 1
    assert client.classify(RED)[0].version == 2
    released.unlink()
    until(lambda: client.model().rejected == {})
    assert client.model().version == 2


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
