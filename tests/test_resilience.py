"""The server as a process, in trouble: overload, dead clients, engines that hang or fail, reloads.

Counts and states are asserted, never how long something took.
"""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
from fake_server import SECRET
from grpc_health.v1 import health_pb2
from processes import FAKE_SERVING, ROOT, TIMEOUT, Server, page, serving, starting, until
from prometheus_client.parser import text_string_to_metric_families
from tiny import PURE, colour_network, jpeg, overwrite, tiny_bundle

from packshot import Client
from packshot.errors import PackshotError
from packshot.oip import open_inference_pb2 as oip
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from packshot.store import release, versions
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = jpeg(PURE["red"], (64, 48))
IMAGE = pb.Image(encoded=RED)
ONE = pb.ClassifyRequest(images=[IMAGE])
EIGHT = pb.ClassifyRequest(images=[IMAGE] * 8)
MEGABYTE = 1 << 20
EVERY_REQUEST = ("--access-log-per-second", 1_000_000)
ALIVE, NOT_ALIVE = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)


@contextmanager
def troubled(folder: Path, *options: object) -> Iterator[tuple[Server, ClassifierStub]]:
    """A server whose engine int8 does as files in `folder` say; the bundle has fp32 too."""
    tiny_bundle(folder / "models", int8=colour_network())
    control = ("--models", folder / "models", "--troubled", "int8", "--control", folder)
    order = () if "--engines" in options else ("--engines", "int8,fp32")
    with (
        serving(*control, *order, *options, program=FAKE_SERVING) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        yield server, ClassifierStub(channel)


def answered(stub: ClassifierStub) -> bool:
    """Whether one image is answered, and then rightly."""
    call = stub.Classify.future(ONE, timeout=TIMEOUT)
    if call.exception(TIMEOUT) is not None:
        return False
    return call.result().results[0].predictions[0].label == "red"


def requests_logged(server: Server, method: str) -> list[dict]:
    lines = [json.loads(line) for line in server.lines if '"packshot.access"' in line]
    return [line for line in lines if line["method"] == method]


# Overload


def offer(
    stub: ClassifierStub, *, rate: float, seconds: float, timeout_seconds: float
) -> list[grpc.Future]:
    """Requests at a steady rate, whatever becomes of those before."""
    started, calls = time.monotonic(), []
    for number in range(int(rate * seconds)):
        due = started + number / rate
        time.sleep(max(0.0, due - time.monotonic()))
        calls.append(stub.Classify.future(ONE, timeout=timeout_seconds))
    return calls


class Watch(threading.Thread):
    """Reads /metrics over and over; `highest` number of images in progress."""

    def __init__(self, server: Server) -> None:
        super().__init__()
        self.highest, self.read = 0.0, 0
        self._server = server
        self._end = threading.Event()

    def run(self) -> None:
        while not self._end.wait(0.01):
            families = text_string_to_metric_families(self._server.page("/metrics")[1])
            found = {sample.name: sample.value for family in families for sample in family.samples}
            self.highest = max(self.highest, found["packshot_images_in_progress"])
            self.read += 1

    def __enter__(self) -> "Watch":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self.join(TIMEOUT)


@pytest.mark.parametrize(
    ("times", "bound", "reason"), [(2, 64, "deadline"), (5, 64, "deadline"), (5, 16, "queue_full")]
)
def test_overload_is_answered_in_time_or_refused(tmp_path, times, bound, reason):
    """Four images in 0.1 s are 40 a second; 24 of them can be in time."""
    capacity, timeout_seconds = 40, 0.6
    limits = ("--max-queued-images", bound, "--max-images-per-request", 4)
    engine = ("--run-ms", 100, "--lanes", 1, "--max-batch", 4, "--engines", "int8")
    with troubled(tmp_path, *limits, *engine, *EVERY_REQUEST) as (server, stub):
        assert answered(stub)
        before = server.memory_bytes
        with Watch(server) as watch:
            calls = offer(stub, rate=times * capacity, seconds=2.5, timeout_seconds=timeout_seconds)
            codes = Counter(call.code().name for call in calls)
        assert codes.keys() <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}, codes
        assert codes.total() == len(calls)
        # What is let in is in time, but for what else this machine does.
        assert codes["DEADLINE_EXCEEDED"] <= 0.2 * len(calls), codes
        assert min(codes["OK"], codes["RESOURCE_EXHAUSTED"]) > 0, codes
        assert watch.read > 1
        assert 0 < watch.highest <= bound
        assert server.metric(
            f'packshot_requests_refused_total{{model="colours",reason="{reason}"}}'
        )
        until(lambda: server.metric("packshot_images_in_progress") == 0)
        assert server.memory_bytes < before + 64 * MEGABYTE
        assert all(answered(stub) for _ in range(5))
        assert server.stop() == 0
        logged = requests_logged(server, "Classify")
        assert Counter(line["code"] for line in logged)["OK"] >= codes["OK"] + 6
        # By the server's own clock; what the event loop adds under load is allowed for.
        allowed_ms = (timeout_seconds + 0.4) * 1000
        assert not [
            line for line in logged if line["code"] == "OK" and line["total_ms"] > allowed_ms
        ]


VICTIM = """
import sys, grpc
timeout = float(sys.argv[2]) if sys.argv[2:] else None
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
request = pb.ClassifyRequest.FromString(sys.stdin.buffer.read())
with grpc.insecure_channel(sys.argv[1]) as channel:
    stub = ClassifierStub(channel)
    calls = [stub.Classify.future(request, timeout=timeout) for _ in range(5)]
    [call.result() for call in calls]
"""


def test_a_deadline_ends_a_request_in_the_server_whatever_its_client_does(tmp_path):
    with troubled(tmp_path, "--lanes", 1, *EVERY_REQUEST) as (server, _):
        (tmp_path / "hang").touch()
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, server.target, "5"], cwd=ROOT, stdin=subprocess.PIPE
        ) as frozen:
            frozen.stdin.write(ONE.SerializeToString())
            frozen.stdin.close()
            until(lambda: server.metric("packshot_images_in_progress") == 5)
            try:
                frozen.send_signal(signal.SIGSTOP)  # it can cancel nothing itself
                until(lambda: server.metric("packshot_images_in_progress") == 0)
            finally:
                frozen.kill()
        (tmp_path / "hang").unlink()
        assert server.stop() == 0
        codes = [line["code"] for line in requests_logged(server, "Classify")]
        assert codes == ["DEADLINE_EXCEEDED"] * 5


def test_the_images_of_a_killed_client_leave_the_queue(tmp_path):
    with troubled(tmp_path, "--lanes", 1, "--default-timeout-ms", 600_000) as (server, stub):

        def in_progress() -> float:
            return server.metric("packshot_images_in_progress")

        (tmp_path / "hang").touch()
        others = [stub.Classify.future(EIGHT)]
        until(lambda: in_progress() == 8)
        with subprocess.Popen(
            [sys.executable, "-c", VICTIM, server.target], cwd=ROOT, stdin=subprocess.PIPE
        ) as victim:
            victim.stdin.write(EIGHT.SerializeToString())
            victim.stdin.close()
            until(lambda: in_progress() == 48)
            others.append(stub.Classify.future(EIGHT))
            until(lambda: in_progress() == 56)
            victim.kill()
        until(lambda: in_progress() == 16)
        (tmp_path / "hang").unlink()
        replies = [call.result(TIMEOUT) for call in others]
        labels = [r.predictions[0].label for reply in replies for r in reply.results]
        assert labels == ["red"] * 16
        until(lambda: in_progress() == 0)
        assert (
            server.metric('packshot_images_dropped_total{model="colours",reason="cancelled"}') == 40
        )
        assert server.metric('packshot_images_total{model="colours",result="ok"}') == 16
        assert answered(stub)


# Engines that hang or fail


def test_an_engine_that_hangs_is_told_and_forgiven(tmp_path):
    with troubled(tmp_path, "--hang-seconds", 1, "--default-timeout-ms", 600_000) as (server, stub):
        assert (server.page("/livez"), server.health()) == ((200, "ok\n"), ALIVE)
        (tmp_path / "hang").touch()
        call = stub.Classify.future(ONE)
        until(lambda: server.page("/livez")[0] == 503)
        assert server.page("/livez")[1].startswith("engine int8 of colours hangs: in one run")
        assert server.page("/readyz") == (503, server.page("/livez")[1])
        assert (server.metric("packshot_live"), server.metric("packshot_ready")) == (0, 0)
        until(lambda: server.health() == NOT_ALIVE)
        until(lambda: server.health("packshot.v1.Classifier") == NOT_ALIVE)
        (tmp_path / "hang").unlink()
        assert call.result(TIMEOUT).results[0].predictions[0].label == "red"
        until(lambda: server.health() == server.health("packshot.v1.Classifier") == ALIVE)
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
    ("spoil", "said"),
    [
        (lambda folder: overwrite(folder / "model.onnx", b"another"), "model.onnx has sha256"),
        (shutil.rmtree, "FileNotFoundError"),  # pruned
    ],
)
def test_where_no_other_engine_can_be_opened_the_failing_one_goes_on(tmp_path, spoil, said):
    with troubled(tmp_path, "--engines", "int8,fp32", "--reload-seconds", 0) as (server, stub):
        spoil(tmp_path / "models" / "colours" / "1")
        (tmp_path / "fail").touch()
        for _ in range(3):
            failure(stub)
        until(lambda: "no engine can take over, int8 goes on" in server.log)
        until(lambda: said in server.log)
        (tmp_path / "fail").unlink()
        until(lambda: answered(stub))


# Reloads


class Load(threading.Thread):
    """A client that asks again and again; `seen`: versions that answered; `failures`: the rest."""

    def __init__(self, target: str, *, until_it_fails: bool = False) -> None:
        super().__init__()
        self.seen: list[int] = []
        self.failures: list[PackshotError] = []
        self._target = target
        self._until_it_fails = until_it_fails
        self._end = threading.Event()

    def run(self) -> None:
        with Client(self._target, timeout_seconds=TIMEOUT) as client:
            while not self._end.is_set():
                try:
                    (result,) = client.classify(RED)
                except PackshotError as error:
                    self.failures.append(error)
                    if self._until_it_fails:
                        return
                else:
                    assert result.label == "red"
                    self.seen.append(result.version)

    def end(self) -> None:
        self._end.set()
        self.join(TIMEOUT)


@contextmanager
def loads(target: str, number: int, **options: bool) -> Iterator[list[Load]]:
    running = [Load(target, **options) for _ in range(number)]
    for load in running:
        load.start()
    try:
        yield running
    finally:
        for load in running:
            load.end()


def test_fifty_reloads_under_load_lose_no_request_and_no_memory(store):
    tiny_bundle(store)
    with (
        serving("--models", store, "--reload-seconds", 0.02, "--engines", "fp32") as server,
        Client(server.target) as client,
        loads(server.target, 3) as running,
    ):

        def reload(times: int) -> None:
            for _ in range(times):
                version = 3 - client.model().version
                release(store / "colours", version)
                until(lambda version=version: client.model().version == version)

        reload(15)
        before, threads = server.memory_bytes, server.threads
        reload(35)
        for load in running:
            load.end()
            assert load.failures == []
            assert set(load.seen) == {1, 2}
        assert server.metric('packshot_reloads_total{model="colours",result="swapped"}') == 50
        for code in ("UNAVAILABLE", "RESOURCE_EXHAUSTED", "INTERNAL"):  # a client tries again
            labels = f'grpc_code="{code}",grpc_method="Classify"'
            service = 'grpc_service="packshot.v1.Classifier",grpc_type="unary"'
            assert server.metric(f"grpc_server_handled_total{{{labels},{service}}}") == 0
        # Pools start their threads when they are needed; an engine left open has two or more.
        until(lambda: server.threads < threads + 16)
        assert server.memory_bytes < before + 32 * MEGABYTE
        assert server.stop() == 0


WRITER = """
import sys, shutil
from pathlib import Path
from packshot.store import new_version
source, model = map(Path, sys.argv[1:])
def told(): print("step", flush=True), sys.stdin.readline()
with new_version(model) as (version, folder):
    told()
    for path in sorted(source.iterdir()):
        content = path.read_bytes()
        with (folder / path.name).open("wb") as file:
            file.write(content[: len(content) // 2])
            file.flush()
            told()
            file.write(content[len(content) // 2 :])
        told()
"""


@contextmanager
def writer(source: Path, model: Path) -> Iterator[Callable[[], bool]]:
    """Steps of a program that writes a version; killed if it is not through when the block ends."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, source, model],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    ) as process:  # fmt: skip

        def step() -> bool:
            return process.stdout.readline() == b"step\n"

        def go_on() -> bool:
            process.stdin.write(b"\n")
            process.stdin.flush()
            return step()

        assert step()
        try:
            yield go_on
        finally:
            process.kill()


def test_a_version_whose_writer_was_killed_is_never_seen(store, tmp_path):
    tiny_bundle(tmp_path / "elsewhere")
    source, model = tiny_bundle(tmp_path / "elsewhere"), store / "colours"
    steps = 2 * len(list(source.iterdir()))
    with (
        serving("--models", store, "--reload-seconds", 0.005) as server,
        Client(server.target) as client,
    ):
        for killed_after in range(0, steps + 1, 2):
            with writer(source, model) as go_on:
                for _ in range(killed_after):
                    assert go_on()
            assert versions(model) == [1]
            assert client.model().version == 1
        assert client.model().rejected == {}
        assert len(list(model.glob(".unfinished-*"))) == steps // 2 + 1
        for claimed in model.glob(".claimed-*"):
            claimed.unlink()  # as a day later: the numbers of the killed are free again
        with writer(source, model) as go_on:
            while go_on():
                pass
        until(lambda: client.model().version == 2)
        assert client.classify(RED)[0].label == "red"
        assert "stays out" not in server.log
        assert server.metric("packshot_reloads_total") == 1
        assert server.stop() == 0


# Draining, and probes


class Stream(threading.Thread):
    """A ClassifyStream that is fed for ever; what it was told, and how it ended."""

    def __init__(self, channel: grpc.Channel) -> None:
        super().__init__()
        self.replies: list[pb.ClassifyStreamResponse] = []
        self._ended = threading.Event()
        self.call = ClassifierStub(channel).ClassifyStream(self._requests())

    def _requests(self) -> Iterator[pb.ClassifyStreamRequest]:
        number = 0
        while not self._ended.is_set():
            number += 1
            yield pb.ClassifyStreamRequest(id=str(number), image=IMAGE)

    def run(self) -> None:
        try:
            self.replies.extend(self.call)
        except grpc.RpcError:
            pass  # its status is looked at
        finally:
            self._ended.set()


def test_sigterm_under_load_loses_nothing_that_was_accepted(tmp_path):
    with (
        troubled(tmp_path, "--run-ms", 10, *EVERY_REQUEST) as (server, _),
        ExitStack() as channels,
        loads(server.target, 4, until_it_fails=True) as unary,
    ):
        streams = [
            Stream(channels.enter_context(grpc.insecure_channel(server.target))) for _ in range(2)
        ]
        for stream in streams:
            stream.start()
        until(lambda: all(len(one.seen) > 20 for one in unary))
        until(lambda: all(len(one.replies) > 20 for one in streams))
        assert server.stop() == 0
        for thread in (*unary, *streams):
            thread.join(TIMEOUT)
        assert "cut off" not in server.log
        told = [line["code"] for line in requests_logged(server, "Classify")]
        assert Counter(told) == {"OK": sum(len(one.seen) for one in unary)}
        assert {type(error).__name__ for one in unary for error in one.failures} == {"Unavailable"}
        read = [line["images"] for line in requests_logged(server, "ClassifyStream")]
        assert sorted(read) == sorted(len(stream.replies) for stream in streams)
        for stream in streams:
            assert stream.call.code() is grpc.StatusCode.UNAVAILABLE
            assert "send what is unanswered to another" in stream.call.details()
            answered_ids = sorted(int(reply.id) for reply in stream.replies)
            assert answered_ids == list(range(1, len(answered_ids) + 1)), (
                "none left out, none twice"
            )
            assert not any(reply.result.HasField("error") for reply in stream.replies)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]


def test_probes_from_loading_to_draining(store, tmp_path):
    port, http_port = free_port(), free_port()
    url = f"http://127.0.0.1:{http_port}"
    (tmp_path / "closed").touch()

    def told(path: str) -> tuple[int, str] | None:
        try:
            return page(url + path)
        except urllib.error.URLError:
            return None  # the port is not there yet

    with (
        starting(
            "--models", store, "--control", tmp_path, "--port", port, "--http-port", http_port,
            "--drain-delay-seconds", 3600, program=FAKE_SERVING,
        ) as server,
        grpc.insecure_channel(f"127.0.0.1:{port}") as channel,
    ):  # fmt: skip
        stub = ClassifierStub(channel)
        until(lambda: told("/readyz") == (503, "loading\n"))
        assert told("/livez") == (200, "ok\n")
        call = stub.Classify.future(ONE, timeout=TIMEOUT, wait_for_ready=True)
        assert call.code() is grpc.StatusCode.UNAVAILABLE
        assert "still being loaded" in call.details()
        (tmp_path / "closed").unlink()
        server.wait_until_ready()
        until(lambda: told("/readyz") == (200, "ok\n"))
        assert answered(stub)
        assert server.metric("packshot_ready") == 1
        server.process.send_signal(signal.SIGTERM)
        until(lambda: told("/readyz") == (503, "draining\n"))
        assert told("/livez") == (200, "ok\n")
        assert server.metric("packshot_ready") == 0
        assert answered(stub)
        assert server.stop() == 0, "a second signal hurries the drain"
