"""Real processes for tests: a server with its address, and any of the programs."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ROOT = Path(__file__).parent.parent
TIMEOUT = 180  # of what takes a second on a machine that is not busy
SERVING = ("-m", "serving")
FAKE_SERVING = ("tests/fake_server.py",)  # its engine misbehaves as the test wants
READY = re.compile(r"on (\S+:\d+), metrics on (http://[^\s\"]+)")


def program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        cwd=ROOT, text=True, capture_output=True, timeout=600, **{"env": environment(), **options},
    )  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **more}


class Server:
    """`python -m serving` on free ports of 127.0.0.1; its log is read by a thread.

    It has a target and pages once `wait_until_ready` has returned.
    """

    def __init__(self, *options: object, program: tuple[str, ...] = SERVING) -> None:
        command = [sys.executable, "-W", "error", *program, "--port", "0", "--http-port", "0"]
        self.process = subprocess.Popen(
            [*command, *map(str, options)], cwd=ROOT, text=True, stderr=subprocess.PIPE,
            env=environment(PYTHONPATH=str(ROOT)),
        )  # fmt: skip
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_until_ready(self) -> None:
        assert self._ready.wait(TIMEOUT), self.log
        found = READY.search(self.log)
        assert found, self.log
        self.target, self.metrics_url = found.groups()
        self.http_url = self.metrics_url.removesuffix("/metrics")

    @property
    def log(self) -> str:
        return "".join(self.lines)

    @property
    def memory_bytes(self) -> int:
        """Resident, as the kernel counts it."""
        return self._status("VmRSS") * 1024

    @property
    def threads(self) -> int:
        return self._status("Threads")

    @property
    def open_files(self) -> int:
        """Connections among them."""
        return sum(1 for _ in Path(f"/proc/{self.process.pid}/fd").iterdir())

    def metric(self, sample: str) -> float:
        """The value of one sample of /metrics, or without labels the sum of them all; else 0."""
        text = urllib.request.urlopen(self.metrics_url, timeout=TIMEOUT).read().decode()
        starts = (f"{sample} ", f"{sample}{{")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(starts))

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the HTTP port."""
        return page(self.http_url + path)

    def health(self, service: str = "") -> int:
        """A `HealthCheckResponse.ServingStatus`; of the server as a whole, or of one API."""
        with grpc.insecure_channel(self.target) as channel:
            request = health_pb2.HealthCheckRequest(service=service)
            return health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT).status

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def pester(self, number: int) -> int:
        """Its exit status, as it ends by itself and gets a signal again and again meanwhile."""

        def ended() -> bool:
            self.process.send_signal(number)
            return self.process.poll() is not None

        until(ended)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def _status(self, field: str) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.split(f"{field}:")[1].split()[0])

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if READY.search(line):
                self._ready.set()
        self._ready.set()


def page(url: str) -> tuple[int, str]:
    """Status and text."""
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def until(condition: Callable[[], object]) -> None:
    """Returns as soon as it holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"
        time.sleep(0.002)  # leaves the cores to those who make it come to pass


@contextmanager
def serving(*options: object, program: tuple[str, ...] = SERVING) -> Iterator[Server]:
    with starting(*options, program=program) as server:
        server.wait_until_ready()
        yield server


@contextmanager
def starting(*options: object, program: tuple[str, ...] = SERVING) -> Iterator[Server]:
    """Like `serving`, without waiting until it is ready."""
    server = Server(*options, program=program)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.end()
        server.process.stderr.close()
