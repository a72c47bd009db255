"""Another version while requests come: swapped in, or kept out, and no request fails."""

import asyncio
import itertools
import os
import shutil
import signal
from contextlib import contextmanager

import grpc
import msgspec
import pytest
from processes import FAKE_SERVING, TIMEOUT, serving, until
from test_gpu_engines import replace_opener
from tiny import PURE, big_image, change_manifest, colour_network, jpeg, overwrite, tiny_bundle

from packshot import Client
from packshot.atomic import write_whole
from packshot.bundle import read_manifest, write_bundle
from packshot.store import new_version, share
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.open import EngineChoice
from serving.loading import Loader, Room
from serving.metrics import Metrics

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


def test_a_repair_that_keeps_size_and_time_is_noticed(store, followed, tmp_path):
    """As by `cp -p`."""
    _, client = followed
    tiny_bundle(tmp_path / "elsewhere")
    second = tiny_bundle(tmp_path / "elsewhere")
    sound = (second / "model.onnx").rename(tmp_path / "model.onnx")
    before = sound.stat()
    damaged = second / "model.onnx"
    damaged.write_bytes(bytes(before.st_size))
    os.utime(damaged, ns=(before.st_atime_ns, before.st_mtime_ns))
    second.rename(store / "colours" / "2")
    until(lambda: client.model().rejected == {"2": "damaged"})
    sound.rename(store / "colours" / "2" / "model.onnx")
    until(lambda: client.model().version == 2)


def test_a_bad_version_that_is_removed_is_forgotten(store, followed):
    _, client = followed
    (store / "colours" / "2").mkdir()
    (store / "colours" / "2" / "manifest.json").write_text("half a")
    until(lambda: client.model().rejected == {"2": "damaged"})
    shutil.rmtree(store / "colours" / "2")
    until(lambda: client.model().rejected == {})
    assert client.model().version == 1


def test_what_stays_out_is_counted_for_as_long_as_it_does(store, followed):
    server, client = followed
    out = 'packshot_rejected_versions{model="colours",reason="%s"}'
    broken, released = store / "colours" / "2", store / "colours" / "released"
    assert "packshot_rejected_versions{" not in server.page("/metrics")[1]
    broken.mkdir()
    (broken / "manifest.json").write_text("half a")
    until(lambda: server.metric(out % "damaged") == 1)
    write_whole(released, b"9\n")
    until(lambda: server.metric(out % "not_found") == 1)
    assert server.metric(out % "damaged") == 1
    write_whole(released, b"1\n")  # it serves already: nothing is swapped
    until(lambda: "packshot_rejected_versions{" not in server.page("/metrics")[1])
    released.unlink()
    until(lambda: server.metric(out % "damaged") == 1)
    assert tiny_bundle(store).name == "3"
    until(lambda: client.model().version == 3)
    until(lambda: "packshot_rejected_versions{" not in server.page("/metrics")[1])


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
    until(lambda: client.model().rejected == {"released": "damaged"})
    assert server.metric('packshot_reloads_total{model="colours",result="damaged"}') == 1
    assert client.classify(RED)[0].version == 2
    released.unlink()
    until(lambda: client.model().rejected == {})
    assert client.model().version == 2


def test_another_fault_of_a_release_is_told_too(store, followed):
    server, client = followed
    write_whole(store / "colours" / "released", b"9\n")
    until(lambda: client.model().rejected == {"released": "not_found"})
    write_whole(store / "colours" / "released", b"two\n")
    until(lambda: client.model().rejected == {"released": "damaged"})
    assert server.log.count("released stays out") == 2


def test_wrong_answers_are_told_as_such(store, followed):
    server, client = followed
    other = tiny_bundle(store.parent / "elsewhere")
    change = msgspec.structs.replace(read_manifest(other), version=2)
    network = colour_network(sign=-1)
    (other / "manifest.json").unlink()
    overwrite(other / "model.onnx", network)
    write_bundle(other, change)
    other.rename(store / "colours" / "2")
    until(lambda: client.model().rejected == {"2": "answers_differ"})
    assert server.metric('packshot_reloads_total{model="colours",result="answers_differ"}') == 1
    refused = (
        'packshot_engine_refusals_total{engine="fp32",model="colours",reason="answers_differ"}'
    )
    assert server.metric(refused) == 1


def test_golden_samples_of_another_width_than_the_labels_are_told_as_such(
    store, followed, tmp_path
):
    server, client = followed
    tiny_bundle(tmp_path / "elsewhere")
    second = change_manifest(tiny_bundle(tmp_path / "elsewhere"), labels=("red", "green"))
    second.rename(store / "colours" / "2")
    until(lambda: client.model().rejected == {"2": "answers_differ"})
    assert server.metric('packshot_reloads_total{model="colours",result="answers_differ"}') == 1
    assert "2 stays out: golden samples of 3 logits for 2 labels" in server.log


def test_what_is_withdrawn_while_it_is_loaded_never_serves(store, tmp_path):
    options = ("--models", store, "--control", tmp_path, "--reload-seconds", 0.05)
    released = store / "colours" / "released"
    with serving(*options, program=FAKE_SERVING) as server, Client(server.target) as client:
        (tmp_path / "closed").touch()
        folder = tiny_bundle(store)
        until(lambda: f"loading {folder}" in server.log)
        write_whole(released, b"1\n")
        (tmp_path / "closed").unlink()
        until(lambda: "another was released while it was loaded" in server.log)
        released.unlink()
        until(lambda: client.model().version == 2)
        assert "colours: version 2 serves" not in server.log.split("another was released")[0]


@contextmanager
def slow_to_load(folder, *options):
    """A server, and clients of its models apples and boots.

    int8 opens once folder/closed is gone, which is there, and fp32 once folder/held is.
    """
    tiny_bundle(folder / "models", "apples")
    tiny_bundle(folder / "models", "boots")
    control = ("--models", folder / "models", "--control", folder, "--engines", "int8,fp32")
    troubled = ("--troubled", "int8", "--held", "fp32")
    with (
        serving(*control, *troubled, *options, program=FAKE_SERVING) as server,
        Client(server.target, model="apples", timeout_seconds=TIMEOUT) as apples,
        Client(server.target, model="boots", timeout_seconds=TIMEOUT) as boots,
    ):
        (folder / "closed").touch()
        yield server, apples, boots


def test_a_load_that_takes_long_holds_up_its_own_model_only(tmp_path):
    models = tmp_path / "models"
    with slow_to_load(tmp_path, "--reload-seconds", 0.05, "--alone-ms", 0) as (
        server, apples, boots,
    ):  # fmt: skip
        slow = tiny_bundle(models, "apples", int8=colour_network())
        until(lambda: f"loading {slow}" in server.log)
        tiny_bundle(models, "boots")
        until(lambda: boots.model().version == 2)
        server.process.send_signal(signal.SIGHUP)
        tiny_bundle(models, "boots")
        until(lambda: boots.model().version == 3)
        assert apples.model().version == 1
        assert server.log.count(f"loading {slow}") == 1
        (tmp_path / "closed").unlink()
        until(lambda: apples.model().version == 2)
        assert server.stop() == 0


def test_a_load_has_the_machine_to_itself_unless_it_takes_long(tmp_path):
    models = tmp_path / "models"
    with slow_to_load(tmp_path, "--reload-seconds", 0.005) as (server, _, boots):
        slow = tiny_bundle(models, "apples", int8=colour_network())
        until(lambda: f"loading {slow}" in server.log)
        second = tiny_bundle(models, "boots")
        (tmp_path / "closed").unlink()
        until(lambda: boots.model().version == 2)
        before, _ = server.log.split(f"loading {second}")
        assert "apples: version 2 serves" in before


def test_two_are_loaded_at_once_and_the_next_when_one_of_them_is(tmp_path):
    models = tmp_path / "models"
    options = ("--reload-seconds", 0.005, "--alone-ms", 0)
    with slow_to_load(tmp_path, *options) as (server, apples, _):
        (tmp_path / "held").touch()
        slow = tiny_bundle(models, "apples", int8=colour_network())
        held = tiny_bundle(models, "boots")
        until(lambda: f"loading {slow}" in server.log and f"loading {held}" in server.log)
        third = tiny_bundle(models, "coats")
        tiny_bundle(models, "dresses")
        (tmp_path / "closed").unlink()
        until(lambda: f"loading {third}" in server.log)
        assert apples.model().version == 2
        before, _ = server.log.split(f"loading {third}")
        assert "apples: version 2 serves" in before
        assert server.stop() == 0, "two threads that load are left to themselves"


def test_what_is_asked_for_while_a_version_is_loaded_is_done_after_it(tmp_path):
    """With what was on disk by then; here it is no better."""
    with slow_to_load(tmp_path, "--reload-seconds", 0) as (server, apples, _):
        tiny_bundle(tmp_path / "elsewhere", "apples")
        second = tiny_bundle(tmp_path / "elsewhere", "apples", int8=colour_network())
        overwrite(second / "model.int8.onnx", b"not what the manifest says")
        bad = second.rename(tmp_path / "models" / "apples" / "2")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: f"loading {bad}" in server.log)
        server.process.send_signal(signal.SIGHUP)
        assert apples.model().version == 1
        (tmp_path / "closed").unlink()
        damaged = 'packshot_reloads_total{model="apples",result="damaged"}'
        until(lambda: server.metric(damaged) == 2)


def test_a_load_that_takes_minutes_is_told(store, monkeypatch, caplog):
    monkeypatch.setattr("serving.loading.LONG_SECONDS", 0)

    def open_once_told(wanted):
        until(lambda: "colours/1 takes more than 0 s" in caplog.text)
        return OnnxRuntimeEngine(wanted.checked(), name="fp32", lanes=1)

    replace_opener(monkeypatch, "fp32", open_once_told)
    choice = EngineChoice(order=("fp32",), lanes=1, max_batch=1)

    async def load():
        loader = Loader(store, choice, Room(max_images=1, max_bytes=1), Metrics())
        model = await loader.load(store / "colours" / "1")
        await model.scheduler.close()
        await loader.close()

    asyncio.run(load())


def test_a_version_that_is_changed_on_disk_is_told_of_once(store, followed):
    server, client = followed
    overwrite(store / "colours" / "1" / "labels.txt", b"crimson\ngreen\nblue\n")
    until(lambda: "1 was changed on disk, which is served as it was" in server.log)
    tiny_bundle(store)
    until(lambda: client.model().version == 2)
    assert server.log.count("was changed on disk") == 1


def test_a_served_version_whose_files_are_shared_with_another_has_not_changed(store, followed):
    server, client = followed
    write_whole(store / "colours" / "released", b"1\n")
    with new_version(store / "colours") as (_, folder):
        share(["model.onnx"], store / "colours" / "1", folder)
    tiny_bundle(store, "ties")  # looked at after the colours
    until(lambda: "ties" in client.model().served_models)
    assert "was changed on disk" not in server.log


def test_a_store_that_cannot_be_read_is_told_of_once(store, followed):
    server, client = followed
    away = store.rename(store.with_name("away"))
    until(lambda: "the store cannot be read" in server.log)
    server.process.send_signal(signal.SIGHUP)
    assert client.classify(RED)[0].label == "red"
    away.rename(store)
    until(lambda: "the store can be read again" in server.log)
    assert server.log.count("the store cannot be read") == 1


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
