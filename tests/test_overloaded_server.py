"""The server as a process, with more to do than it can, or for clients that are gone.

Counts and states are asserted, never how long something took.
"""

import signal
import subprocess
import sys
import threading
import time
from collections import Counter

import grpc
import pytest
from processes import ROOT, TIMEOUT, Server, until
from prometheus_client.parser import text_string_to_metric_families
from troubled import EIGHT, EVERY_REQUEST, MEGABYTE, ONE, answered, requests_logged, troubled

from packshot.v1.classifier_pb2_grpc import ClassifierStub


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
