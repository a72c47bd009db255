"""Several models in one server: who answers, who is missing, who comes later."""

import shutil
import signal
import subprocess

import grpc
import pytest
from processes import TIMEOUT, program, serving, until
from tiny import PURE, jpeg, overwrite, tiny_bundle

from packshot import Client
from packshot.errors import InvalidInput, NotFound, Unavailable
from packshot.oip import open_inference_pb2 as oip
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.models import Models

RED = jpeg(PURE["red"])


def client_of(server, model: str = "") -> Client:
    return Client(server.target, model=model, timeout_seconds=TIMEOUT)


def refused_to_start(*options: object) -> str:
    done: subprocess.CompletedProcess[str]
    done = program("serving", "--port", 0, "--http-port", 0, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.fixture
def store(tmp_path):
    """Three models; the second has two versions and a threshold of its own."""
    tiny_bundle(tmp_path, "apples")
    tiny_bundle(tmp_path, "boots")
    tiny_bundle(tmp_path, "boots", min_confidence=0.25)
    tiny_bundle(tmp_path, "coats")
    return tmp_path


def spoil(store, model: str) -> None:
    overwrite(store / model / "1" / "model.onnx", b"not what the manifest says")


def test_those_that_are_asked_for_are_served_the_first_by_default(store):
    with serving("--models", store, "--model", "boots,apples") as server:
        with client_of(server) as client:
            assert (client.classify(RED)[0].model, client.classify(RED)[0].version) == ("boots", 2)
            info = client.model()
        assert (info.model, info.served_models, info.default_model, info.min_confidence) == (
            "boots", ("apples", "boots"), "boots", 0.25,
        )  # fmt: skip
        with client_of(server, "apples") as client:
            assert client.model().model == client.embed(RED)[0].model == "apples"
            (streamed,) = client.classify_stream([("one", RED)])
            assert (streamed.model, streamed.version) == ("apples", 1)
        with client_of(server, "coats") as client, pytest.raises(NotFound, match="apples, boots"):
            client.classify(RED)
        counted = 'packshot_images_total{model="%s",result="ok"}'
        assert (server.metric(counted % "boots"), server.metric(counted % "apples")) == (2, 2)


def test_another_default_can_be_chosen(store):
    options = ("--model", "boots,apples", "--default-model", "apples")
    with serving("--models", store, *options) as server, client_of(server) as client:
        assert client.classify(RED)[0].model == "apples"


def test_without_names_all_are_served_and_requests_must_name_one(store):
    with serving("--models", store) as server:
        with client_of(server) as client:
            for call in (client.model, lambda: client.classify(RED), lambda: client.embed(RED)):
                with pytest.raises(InvalidInput, match="apples, boots, coats"):
                    call()
            (streamed,) = client.classify_stream([("one", RED)])
            assert streamed.reason == "invalid"
        for name in ("apples", "boots", "coats"):
            with client_of(server, name) as client:
                assert client.classify(RED)[0].model == name
                assert client.model().default_model == ""


def test_a_new_name_is_served_as_soon_as_it_is_there(store, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    tiny_bundle(elsewhere, "dresses")
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        client_of(server, "apples") as client,
    ):
        assert client.model().served_models == ("apples", "boots", "coats")
        (elsewhere / "dresses").rename(store / "dresses")
        until(lambda: "dresses" in client.model().served_models)
        with client_of(server, "dresses") as newcomer:
            assert newcomer.classify(RED)[0].model == "dresses"


def test_a_name_that_was_not_asked_for_is_left_alone(store):
    with (
        serving("--models", store, "--model", "apples", "--reload-seconds", 0.05) as server,
        client_of(server) as client,
    ):
        tiny_bundle(store, "dresses")
        tiny_bundle(store, "apples")
        until(lambda: client.model().version == 2)
        assert client.model().served_models == ("apples",)


def test_each_model_has_versions_of_its_own(store):
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        client_of(server, "apples") as apples,
        client_of(server, "boots") as boots,
    ):
        (store / "boots" / "released").write_text("1\n")
        until(lambda: boots.classify(RED)[0].version == 1)
        tiny_bundle(store, "apples")
        until(lambda: apples.classify(RED)[0].version == 2)
        assert boots.classify(RED)[0].version == 1
        swapped = 'packshot_reloads_total{model="%s",result="swapped"}'
        assert [server.metric(swapped % name) for name in ("apples", "boots", "coats")] == [1, 1, 0]
        in_use = 'packshot_engine_in_use{engine="fp32",model="%s",version="%d"}'
        assert server.metric(in_use % ("apples", 2)) == server.metric(in_use % ("boots", 1)) == 1


def test_a_bad_one_that_nobody_asked_for_stays_out_until_it_is_good(store):
    sound = (store / "boots" / "1" / "model.onnx").read_bytes()
    spoil(store, "coats")
    with (
        serving("--models", store, "--reload-seconds", 0.05) as server,
        client_of(server, "boots") as client,
    ):
        assert client.classify(RED)[0].label == "red"
        assert client.model().served_models == ("apples", "boots")
        damaged = 'packshot_reloads_total{model="coats",result="damaged"}'
        assert server.metric(damaged) == 1
        assert "coats/1 stays out" in server.log
        tiny_bundle(store, "boots")
        until(lambda: client.model().version == 3)  # the store was looked at since
        assert server.metric(damaged) == 1, "told once"
        overwrite(store / "coats" / "1" / "model.onnx", sound)
        server.process.send_signal(1)
        until(lambda: client.model().served_models == ("apples", "boots", "coats"))


def test_a_bad_one_that_was_asked_for_is_an_error(store):
    spoil(store, "coats")
    assert "coats/1" in refused_to_start("--models", store, "--model", "apples,coats")
    assert "coats/1" in refused_to_start("--models", store, "--default-model", "coats")


def test_nothing_good_at_all_is_an_error(tmp_path):
    for name in ("apples", "boots"):
        tiny_bundle(tmp_path, name)
        spoil(tmp_path, name)
    assert "none of the models in" in refused_to_start("--models", tmp_path)


def test_a_default_that_is_not_served_is_an_error(store):
    message = refused_to_start("--models", store, "--model", "apples", "--default-model", "boots")
    assert "--default-model is 'boots'" in message
    assert "no model 'shoes'" in refused_to_start("--models", store, "--default-model", "shoes")


def test_check_prints_a_table_of_all_and_ends(store):
    done = program("serving", "--models", store, "--port", 0, "--http-port", 0, "--check")
    assert done.returncode == 0, done.stderr
    heading, *rows = done.stdout.splitlines()
    assert heading.split()[:4] == ["model", "version", "engine", "golden"]
    table = [tuple(row.split()[:3]) for row in rows if " fp32 " in row]
    assert table == [("apples", "1", "fp32"), ("boots", "2", "fp32"), ("coats", "1", "fp32")]
    assert any(row.startswith("apples: not int8 (not_in_bundle)") for row in rows)


def test_check_fails_for_a_bad_one_among_others_that_nobody_asked_for(store):
    spoil(store, "coats")
    done = program("serving", "--models", store, "--port", 0, "--http-port", 0, "--check")
    assert done.returncode == 1
    *_, last = done.stdout.splitlines()
    assert last == "coats: not version 1: damaged"


def test_a_model_that_is_still_to_come_is_not_unknown():
    class Loaded:
        name, version, engine = "apples", 1, "fp32"

        def start_serving(self) -> None:
            """As a model does."""

    models = Models()
    models.loading, models.default = {"boots"}, "boots"
    models.put(Loaded())
    for name in ("boots", ""):
        with pytest.raises(Unavailable, match="still being loaded"):
            models.named(name)
    with pytest.raises(NotFound, match="no model 'coats'"):
        models.named("coats")
    assert models.named("apples").name == "apples"
    models.loading.clear()
    with pytest.raises(NotFound, match="no model 'boots'"):
        models.named("boots")


def test_check_of_a_bad_bundle_is_one_clear_line(store):
    spoil(store, "coats")
    done = program(
        "serving", "--models", store, "--model", "apples,coats", "--check",
        "--port", 0, "--http-port", 0,
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = (one for one in done.stderr.splitlines() if one.startswith("packshot: "))
    assert "cannot serve" in line
    assert f"{store}/coats/1/model.onnx has sha256" in line
    assert "Traceback" not in done.stderr


def test_the_only_one_of_the_store_is_the_default(tmp_path):
    tiny_bundle(tmp_path, "apples")
    shutil.copytree(tmp_path / "apples", tmp_path / ".snapshot")
    with serving("--models", tmp_path, "--reload-seconds", 0.05) as server:
        with client_of(server) as client:
            assert client.classify(RED)[0].model == "apples"
            assert client.model().default_model == "apples"
            tiny_bundle(tmp_path, "coats")
            until(lambda: client.model().served_models == ("apples", "coats"))
            assert client.classify(RED)[0].model == "apples", "what was understood still is"
        assert "give --default-model" in server.log


def test_which_is_the_default_does_not_go_by_what_is_damaged(tmp_path):
    """Else a server that starts anew would answer with another model's labels."""
    tiny_bundle(tmp_path, "apples")
    tiny_bundle(tmp_path, "boots")
    spoil(tmp_path, "apples")
    told = "name one of the models that this server has: boots"
    with (
        serving("--models", tmp_path) as server,
        client_of(server) as client,
        pytest.raises(InvalidInput, match=told),
    ):
        client.classify(RED)


def test_a_model_of_which_nothing_can_be_served_is_told_of_with_the_reason(tmp_path):
    tiny_bundle(tmp_path, "apples")
    tiny_bundle(tmp_path, "boots")
    spoil(tmp_path, "boots")
    with (
        serving("--models", tmp_path, "--reload-seconds", 0.05) as server,
        client_of(server, "boots") as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        ask = GRPCInferenceServiceStub(channel).RepositoryIndex

        def index() -> list[tuple[str, str, str]]:
            models = ask(oip.RepositoryIndexRequest(), timeout=TIMEOUT).models
            return [(one.name, one.state, one.reason) for one in models]

        serves, damaged = ("apples", "READY", ""), ("boots", "UNAVAILABLE", "damaged")
        assert index() == [serves, damaged]
        told = "no model 'boots', as version 1 is damaged; this server has apples"
        assert server.metric('packshot_rejected_versions{model="boots",reason="damaged"}') == 1
        with pytest.raises(Unavailable, match=told):  # another server may have an older version
            client.model()
        shutil.rmtree(tmp_path / "boots")
        until(lambda: index() == [serves])
        assert "packshot_rejected_versions{" not in server.page("/metrics")[1]
        with pytest.raises(NotFound, match="no model 'boots'; this server has apples"):
            client.model()


def test_a_rejected_version_that_is_removed_is_forgotten_by_sighup_alone(tmp_path):
    tiny_bundle(tmp_path, "apples")
    overwrite(tiny_bundle(tmp_path, "apples") / "model.onnx", b"not what the manifest says")
    options = ("--models", tmp_path, "--reload-seconds", 0)
    tiny_bundle(tmp_path, "boots")
    (tmp_path / "apples" / "released").write_text("1\n")
    with serving(*options) as server, client_of(server, "apples") as client:
        (tmp_path / "apples" / "released").unlink()
        server.process.send_signal(signal.SIGHUP)
        until(lambda: client.model().rejected == {"2": "damaged"})
        shutil.rmtree(tmp_path / "apples" / "2")
        server.process.send_signal(signal.SIGHUP)
        until(lambda: client.model().rejected == {})
