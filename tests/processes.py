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

ROOT = Path(__file__).parent.parent
TIMEOUT = 60
READY = re.compile(r"on ([\d.]+:\d+), metrics on (http://[\w.:/]+)")


def program(*arguments: object, **options: object) -> subprocess.CompletedProcess[str]:
    """Runs `python -m ...` to its end."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", *map(str, arguments)],
        cwd=ROOT, text=True, capture_output=True, timeout=600, env=environment(), **options,
    )  # fmt: skip


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "ORT_DISABLE_TELEMETRY": "1", **more}


def until(condition: Callable[[], object]) -> None:
    """Returns as soon as it holds."""
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"


class Server:
    """`python -m serving` on free ports of 127.0.0.1; its log is read by a thread."""

    def __init__(self, *options: object) -> None:
        command = [sys.executable, "-W", "error", "-m", "serving", "--port", "0"]
        command += ["--http-port", "0", *map(str, options)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, text=True, stderr=subprocess.PIPE, env=environment()
        )
        self.lines: list[str] = []
        self._ready = threading.Event()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        assert self._ready.wait(TIMEOUT), self.log
        found = READY.search(self.log)
        assert found, self.log
        self.target, self.metrics_url = found.groups()
        self.http_url = self.metrics_url.removesuffix("/metrics")

    @property
    def log(self) -> str:
        return "".join(self.lines)

    def metric(self, sample: str) -> float:
        """The value of one sample of /metrics, or without labels the sum of them all; else 0."""
        text = urllib.request.urlopen(self.metrics_url, timeout=TIMEOUT).read().decode()
        starts = (f"{sample} ", f"{sample}{{")
        return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(starts))

    def page(self, path: str) -> tuple[int, str]:
        """Status and text of a page of the HTTP port."""
        try:
            with urllib.request.urlopen(self.http_url + path, timeout=TIMEOUT) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.end()

    def end(self) -> int:
        code = self.process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        return code

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append(line)
            if READY.search(line):
                self._ready.set()
        self._ready.set()


@contextmanager
def serving(*options: object) -> Iterator[Server]:
    server = Server(*options)
    try:
        yield server
    finally:
        if server.process.poll() is None:
            server.process.kill()
            server.end()
        server.process.stderr.close()
