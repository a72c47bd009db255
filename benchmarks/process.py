"""A server in a process of its own, and what it says of itself."""

import re
import subprocess
import sys
import threading
import urllib.request
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
from prometheus_client.parser import text_string_to_metric_families

READY = re.compile(r"engine (\w+), on ([\d.]+:\d+), metrics on (http://[\w.:/]+)")


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """A server that is ready."""

    engine: str
    target: str
    metrics_url: str

    def metric(self, name: str) -> float:
        """The sum over all series of a sample, such as process_cpu_seconds_total."""
        with urllib.request.urlopen(self.metrics_url) as page:
            families = text_string_to_metric_families(page.read().decode())
        samples = (sample for family in families for sample in family.samples)
        return sum(sample.value for sample in samples if sample.name == name)

    def cpu_seconds(self) -> float:
        return self.metric("process_cpu_seconds_total")

    def resident_megabytes(self) -> float:
        return self.metric("process_resident_memory_bytes") / 1e6


@contextmanager
def server(models: Path, model: str, *options: str, module: str = "serving") -> Iterator[Served]:
    """On free ports; `module` is what is run in the place of the server itself."""
    store = ("--models", str(models), "--model", model)
    ports = ("--port", "0", "--http-port", "0", "--access-log-per-second", "1")
    with started(module, *store, *ports, *options) as served:
        yield served


@contextmanager
def started(module: str, *options: str) -> Iterator[Served]:
    """`python -m module` until it says that it is ready; ends it afterwards."""
    command = [sys.executable, "-m", module, *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log = []
    try:
        for line in process.stderr or ():
            log.append(line)
            if found := READY.search(line):
                # Nobody else reads the pipe: a server that writes to a full one is slower.
                reader = threading.Thread(target=deque, args=(process.stderr, 0), daemon=True)
                reader.start()
                yield Served(engine=found[1], target=found[2], metrics_url=found[3])
                break
        else:
            raise SystemExit(f"the server did not start:\n{''.join(log)}")
    finally:
        process.terminate()
        process.wait()
