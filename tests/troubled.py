"""A server as a process whose engine misbehaves as a test wants, and clients that ask it."""

import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2
from processes import FAKE_SERVING, TIMEOUT, Server, serving
from tiny import PURE, colour_network, jpeg, tiny_bundle

from packshot import Client
from packshot.errors import PackshotError
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


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return one.getsockname()[1]
