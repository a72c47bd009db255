"""A server in a process of its own, and what the system says of it."""

import os
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

READY = re.compile(r"engine ([\w-]+), on ([\d.]+:\d+)(?:, metrics on (http://[\w.:/]+))?")
TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready. `start_seconds`: from the start of its process to here."""

    engine: str
    target: str
    metrics_url: str | None
    process: int
    start_seconds: float

    def metric(self, name: str, **labels: str) -> float:
        """The sum over all series of a sample with these labels."""
        assert self.metrics_url is not None
        with urllib.request.urlopen(self.metrics_url) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = (sample for family in families for sample in family.samples)
        return sum(
            sample.value
            for sample in samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def cpu_seconds(self) -> float:
        """Of all its threads, user and system; asking costs the server nothing."""
        # The name in brackets may hold spaces: user and system are the 12th and 13th behind it.
        fields = self._file("stat").rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS_A_SECOND

    def resident_megabytes(self) -> float:
        kilobytes = int(self._file("status").split("VmRSS:")[1].split()[0])
        return kilobytes * 1024 / 1e6

    def _file(self, name: str) -> str:
        return Path(f"/proc/{self.process}/{name}").read_text()


@contextmanager
def server(
    models: Path,
    model: str,
    *options: str,
    module: str = "serving",
    compiled: Path = Path("runs/bench/compiled"),
) -> Iterator[Served]:
    """On free ports; `module` is what is run in the place of the server itself."""
    store = ("--models", str(models), "--model", model, "--compiled-models", str(compiled))
    ports = ("--port", "0", "--http-port", "0", "--access-log-per-second", "1")
    with started(module, *store, *ports, *options) as served:
        yield served


@contextmanager
def started(module: str, *options: str) -> Iterator[Served]:
    """`python -m module` until it says that it is ready; ends it afterwards."""
    command = [sys.executable, "-m", module, *options]
    began = time.perf_counter()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        # Nobody else reads its log: a server that writes to a full pipe stands still.
        reader = threading.Thread(target=deque, args=(process.stderr, 0))
        try:
            found = _ready_line(process)
            seconds = time.perf_counter() - began
            reader.start()
            yield Served(
                engine=found[1], target=found[2], metrics_url=found[3], process=process.pid,
                start_seconds=seconds,
            )  # fmt: skip
        finally:
            process.terminate()
            if reader.ident is not None:
                reader.join()  # before the pipe is closed


def _ready_line(process: subprocess.Popen[str]) -> re.Match[str]:
    """Waits for it. Ends the program if the server ends instead."""
    log = []
    for line in process.stderr or ():
        log.append(line)
        if found := READY.search(line):
            return found
    raise SystemExit(f"the server did not start:\n{''.join(log)}")
