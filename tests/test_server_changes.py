"""The server as a process, while versions come and while it starts and ends: nothing is lost."""

import signal
import subprocess
import sys
import threading
import urllib.error
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
from processes import FAKE_SERVING, ROOT, TIMEOUT, page, serving, starting, until
from tiny import tiny_bundle
from troubled import (
    EVERY_REQUEST,
    IMAGE,
    MEGABYTE,
    ONE,
    RED,
    answered,
    free_port,
    loads,
    requests_logged,
    troubled,
)

from packshot import Client
from packshot.store import release, versions
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub


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
