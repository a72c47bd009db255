"""The server as a process, whose engines hang or fail.

States are asserted, never how long something took.
"""

import re
import shutil

import grpc
import pytest
from fake_server import SECRET
from processes import TIMEOUT, until
from tiny import colour_network, overwrite, tiny_bundle
from troubled import ALIVE, IMAGE, NOT_ALIVE, ONE, answered, troubled

from packshot import Client
from packshot.oip import open_inference_pb2 as oip
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub


def test_an_engine_that_hangs_is_told_and_forgiven(tmp_path):
    with troubled(tmp_path, "--hang-seconds", 1, "--default-timeout-ms", 600_000) as (server, stub):
        assert (server.page("/livez"), server.health()) == ((200, "ok\n"), ALIVE)
        (tmp_path / "hang").touch()
        call = stub.Classify.future(ONE)
        until(lambda: server.page("/livez")[0] == 503)
        assert server.page("/livez")[1].startswith("engine int8 of colours hangs: in one run")
        assert server.page("/readyz") == (503, server.page("/livez")[1])
        assert (server.metric("packshot_live"), server.metric("packshot_ready")) == (0, 0)
        assert server.health() == server.health("packshot.v1.Classifier") == NOT_ALIVE
        (tmp_path / "hang").unlink()
        assert call.result(TIMEOUT).results[0].predictions[0].label == "red"
        until(lambda: server.page("/readyz")[0] == 200)
        assert server.health() == server.health("packshot.v1.Classifier") == ALIVE
        assert server.page("/livez") == server.page("/readyz") == (200, "ok\n")
        assert (server.metric("packshot_live"), server.metric("packshot_ready")) == (1, 1)
        assert answered(stub)
        assert server.stop() == 0


def test_a_server_whose_engine_hangs_can_be_stopped(tmp_path):
    limits = ("--hang-seconds", 1, "--drain-timeout-seconds", 0.5)
    with troubled(tmp_path, *limits, "--default-timeout-ms", 600_000) as (server, stub):
        (tmp_path / "hang").touch()
        call = stub.Classify.future(ONE)
        until(lambda: server.page("/livez")[0] == 503)
        assert server.stop() == 1
        assert "1 requests were cut off" in server.log
        assert "engine int8 still runs after" in server.log
        assert '"event":"drained"' in server.log
        assert call.exception(TIMEOUT) is not None


def failure(stub: ClassifierStub) -> grpc.RpcError:
    error = stub.Classify.future(ONE, timeout=TIMEOUT).exception(TIMEOUT)
    assert error is not None
    return error


def test_another_engine_takes_over_from_one_that_fails_three_times(tmp_path):
    with (
        troubled(tmp_path, "--engines", "int8,fp32") as (server, stub),
        Client(server.target) as client,
    ):
        assert client.model().engine == "int8"
        (tmp_path / "fail").touch()
        for _ in range(3):
            error = failure(stub)
            assert error.code() is grpc.StatusCode.INTERNAL
            said = re.fullmatch(
                "internal error; the server's log has it under request id ([0-9a-f]{16})",
                error.details(),
            )
            assert said, error.details()
            until(lambda said=said: f"request id {said[1]}" in server.log)
        assert SECRET in server.log
        until(lambda: answered(stub))
        took_over = (
            'packshot_engine_takeovers_total{failed="int8",model="colours",successor="fp32"}'
        )
        assert server.metric(took_over) == 1
        assert server.metric('packshot_engine_failures_total{engine="int8",model="colours"}') == 3
        model = client.model()
        assert model.engine == "fp32"
        assert model.refused == {"int8": "failed: failed 3 times in a row while it served"}
        assert server.page("/livez") == server.page("/readyz") == (200, "ok\n")
        assert server.stop() == 0


def test_an_engine_that_comes_too_late_to_replace_an_old_version_is_not_in_use(tmp_path):
    """While its successor opens, another version is swapped in."""
    late = ("--engines", "int8,fp32", "--held", "fp32", "--reload-seconds", 0.05)
    with (
        troubled(tmp_path, *late) as (server, stub),
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        (tmp_path / "held").touch()
        (tmp_path / "fail").touch()
        for _ in range(3):
            failure(stub)
        until(lambda: server.page("/readyz")[0] == 503)
        (tmp_path / "fail").unlink()
        tiny_bundle(tmp_path / "models", int8=colour_network())
        until(lambda: client.model().version == 2)
        (tmp_path / "held").unlink()
        until(lambda: "engine fp32 comes too late" in server.log)
        in_use = 'packshot_engine_in_use{engine="%s",model="colours",version="%d"}'
        assert (server.metric(in_use % ("int8", 2)), server.metric(in_use % ("fp32", 1))) == (1, 0)
        assert server.metric("packshot_engine_takeovers_total") == 0
        assert server.stop() == 0


def test_a_model_is_ready_or_not_whatever_the_others_are(tmp_path):
    tiny_bundle(tmp_path / "models", "boots")
    late = ("--engines", "int8,fp32", "--held", "fp32")
    with troubled(tmp_path, *late) as (server, stub), grpc.insecure_channel(server.target) as asked:
        ask = GRPCInferenceServiceStub(asked).ModelReady

        def ready(name: str) -> bool:
            return ask(oip.ModelReadyRequest(name=name), timeout=TIMEOUT).ready

        assert (ready("colours"), ready("boots")) == (True, True)
        (tmp_path / "held").touch()
        (tmp_path / "fail").touch()
        request = pb.ClassifyRequest(model="colours", images=[IMAGE])
        for _ in range(3):
            assert stub.Classify.future(request, timeout=TIMEOUT).exception(TIMEOUT) is not None
        until(lambda: server.page("/readyz")[0] == 503)
        assert (ready("colours"), ready("boots")) == (False, True)
        (tmp_path / "held").unlink()
        until(lambda: ready("colours"))
        assert server.stop() == 0


def test_failing_without_another_engine_is_told_until_it_works_again(tmp_path):
    with troubled(tmp_path, "--engines", "int8") as (server, stub):
        (tmp_path / "fail").touch()
        codes = []

        def dead() -> bool:
            codes.append(failure(stub).code())
            return server.page("/livez")[0] == 503

        until(dead)
        assert server.page("/livez")[1] == "engine int8 of colours fails and there is no other\n"
        assert server.metric("packshot_live") == 0
        assert failure(stub).code() is grpc.StatusCode.INTERNAL
        # UNAVAILABLE while another engine was looked for.
        assert codes[:3] == [grpc.StatusCode.INTERNAL] * 3
        assert set(codes) <= {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNAVAILABLE}
        assert "no engine can take over, int8 goes on" in server.log
        assert server.metric("packshot_engine_takeovers_total") == 0
        (tmp_path / "fail").unlink()
        assert answered(stub)
        assert server.page("/livez") == server.page("/readyz") == (200, "ok\n")
        assert server.metric("packshot_live") == 1
        assert server.stop() == 0


@pytest.mark.parametrize(
    ("spoil", "said", "refused"),
    [
        (
            lambda folder: overwrite(folder / "model.onnx", b"another"),
            "model.onnx has sha256",
            {"fp32": "damaged"},
        ),
        (shutil.rmtree, "FileNotFoundError", {}),  # pruned
    ],
)
def test_where_no_other_engine_can_be_opened_the_failing_one_goes_on(
    tmp_path, spoil, said, refused
):
    with troubled(tmp_path, "--engines", "int8,fp32", "--reload-seconds", 0) as (server, stub):
        spoil(tmp_path / "models" / "colours" / "1")
        (tmp_path / "fail").touch()
        for _ in range(3):
            failure(stub)
        until(lambda: "no engine can take over, int8 goes on" in server.log)
        until(lambda: said in server.log)
        info = stub.GetModel(pb.GetModelRequest(), timeout=TIMEOUT)
        assert {one.engine: one.reason for one in info.refused_engines} == refused
        for engine, reason in refused.items():
            labels = f'engine="{engine}",model="colours",reason="{reason}"'
            assert server.metric(f"packshot_engine_refusals_total{{{labels}}}") >= 1
        (tmp_path / "fail").unlink()
        until(lambda: answered(stub))


def test_a_successor_that_was_mended_takes_over_when_the_engine_fails_again(tmp_path):
    with (
        troubled(tmp_path, "--engines", "int8,fp32", "--reload-seconds", 0) as (server, stub),
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        network = tmp_path / "models" / "colours" / "1" / "model.onnx"
        sound = network.read_bytes()
        overwrite(network, b"another")
        (tmp_path / "fail").touch()
        for _ in range(3):
            failure(stub)
        until(lambda: "no engine can take over, int8 goes on" in server.log)
        overwrite(network, sound)
        (tmp_path / "fail").unlink()
        until(lambda: answered(stub))
        (tmp_path / "fail").touch()
        for _ in range(3):
            failure(stub)
        until(lambda: answered(stub))
        model = client.model()
        assert (model.engine, [*model.refused]) == ("fp32", ["int8"])
