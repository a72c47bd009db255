"""Log lines for machines and for people, and the access log's budget."""

import fcntl
import io
import json
import logging
import math
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime, timedelta

import pytest
from fakes import Clock
from processes import READY, ROOT, TIMEOUT, environment
from tiny import PURE, jpeg

from packshot import Client
from serving.access_log import Access, AccessLog
from serving.log_thread import Lines, LogThread
from serving.logs import configure_logging
from serving.metrics import Metrics
from serving.request_id import request_id

log = logging.getLogger("packshot.test")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    root.handlers = []  # configure_logging closes what it replaces, and these are pytest's
    yield
    root.handlers, root.level = handlers, level


@pytest.fixture
def lines():
    """A function that gives the JSON lines so far, as dictionaries."""
    stream = io.StringIO()
    configure_logging("json", stream=stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


class Stuck(io.StringIO):
    """A stream that nobody reads until `released` is set."""

    def __init__(self):
        super().__init__()
        self.reached, self.released = threading.Event(), threading.Event()

    def write(self, text):
        self.reached.set()
        assert self.released.wait(TIMEOUT)
        return super().write(text)


def test_what_logs_never_waits_and_what_has_no_room_is_counted():
    stream, lost = Stuck(), []
    handler = LogThread(Lines(stream), lines_waiting=3)
    handler.on_lost = lambda: lost.append(1)
    handler.handle(log.makeRecord("packshot", logging.INFO, "", 0, "line 0", (), None))
    assert stream.reached.wait(TIMEOUT)  # the first is being written
    for number in range(1, 9):
        handler.handle(log.makeRecord("packshot", logging.INFO, "", 0, f"line {number}", (), None))
    assert len(lost) == 5
    stream.released.set()
    handler.close()
    written = stream.getvalue().splitlines()
    assert [line for line in written if line.startswith("line")] == [
        f"line {number}" for number in range(4)
    ]
    assert "5 log lines are lost: what reads this log is too slow" in written


def test_what_cannot_be_written_is_counted():
    lost = []
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        handler = LogThread(Lines(full))
        handler.on_lost = lambda: lost.append(1)
        for _ in range(3):
            handler.handle(log.makeRecord("packshot", logging.INFO, "", 0, "a line", (), None))
        handler.close()
        assert len(lost) == 3
        with suppress(OSError):
            full.close()  # it tries to write once more


def test_a_server_whose_log_nobody_reads_goes_on_answering(store, tmp_path):
    """Its standard error is a pipe with room for a few lines."""
    read_end, write_end = os.pipe()
    fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 4096)
    command = ["-m", "serving", "--models", store, "--port", "0", "--http-port", "0"]
    options = ["--access-log-per-second", "100000", "--log-format", "json"]
    process = subprocess.Popen(
        [sys.executable, *map(str, command), *options],
        cwd=ROOT, env=environment(), stderr=write_end,
    )  # fmt: skip
    os.close(write_end)
    text = ""
    while not (ready := READY.search(text)):
        assert process.poll() is None, text
        text += os.read(read_end, 4096).decode()
    with Client(ready[1], timeout_seconds=TIMEOUT) as client:
        for _ in range(100):
            assert client.classify([jpeg(PURE["red"])])[0].label == "red"
    process.send_signal(signal.SIGTERM)
    assert process.wait(TIMEOUT) == 0
    os.close(read_end)


def test_json_has_the_known_keys_first_and_extra_ones_after(lines):
    log.warning("%d images", 3, extra={"model": "shoes", "share": math.nan, "path": object})
    (line,) = lines()
    assert list(line)[:4] == ["timestamp", "level", "logger", "event"]
    assert datetime.fromisoformat(line.pop("timestamp")).utcoffset() == timedelta(0)
    assert line == {
        "level": "warning", "logger": "packshot.test", "event": "3 images",
        "model": "shoes", "share": None, "path": "<class 'object'>",
    }  # fmt: skip


def test_an_exception_is_one_string_on_the_same_line(lines):
    try:
        raise ValueError("broken\nin two")
    except ValueError:
        log.exception("it failed")
    (line,) = lines()
    assert line["level"] == "error"
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: broken\nin two")


def test_what_a_client_sends_cannot_forge_a_line(lines):
    log.info("got %s", 'x"}\n{"level": "error"')
    assert [line["level"] for line in lines()] == ["info"]


def test_the_address_is_found_in_either_format():
    for chosen in ("json", "human"):
        stream = io.StringIO()
        configure_logging(chosen, stream=stream)
        log.info("ready, on 127.0.0.1:8001, metrics on http://127.0.0.1:8002/metrics")
        found = READY.search(stream.getvalue())
        assert found.groups() == ("127.0.0.1:8001", "http://127.0.0.1:8002/metrics")


def test_metadata_that_is_no_text_is_not_quoted(lines):
    """gRPC would: a token with one stray byte behind it, in an error with a traceback."""
    grpc_log = logging.getLogger("grpc._cython.cygrpc")
    try:
        b"Bearer secret\xff".decode()
    except UnicodeDecodeError:
        grpc_log.exception("Invalid encoding on %s", b"Bearer secret\xff")
    grpc_log.error("something else")
    (line,) = lines()
    assert line["event"] == "something else"


def test_auto_is_for_people_on_a_terminal_and_for_machines_elsewhere():
    terminal, file = Terminal(), io.StringIO()
    configure_logging("auto", stream=terminal)
    log.info("hello", extra={"images": 3})
    configure_logging("auto", stream=file)
    log.info("hello")
    seen = re.sub(r"\x1b\[\d*m", "", terminal.getvalue())
    assert terminal.getvalue() != seen, "in colour"
    assert re.fullmatch(r"\d\d:\d\d:\d\d \[info +\] hello +\[packshot.test\] images=3\n", seen), (
        seen
    )
    assert json.loads(file.getvalue())["event"] == "hello"


def test_people_get_no_escape_codes_in_a_file():
    file = io.StringIO()
    configure_logging("human", stream=file)
    try:
        raise ValueError("broken")
    except ValueError:
        log.exception("it failed")
    assert "\x1b" not in file.getvalue()
    assert file.getvalue().endswith("ValueError: broken\n")


def test_lines_below_the_level_are_not_written():
    file = io.StringIO()
    configure_logging("json", "warning", stream=file)
    log.info("no")
    log.warning("yes")
    assert "no" not in file.getvalue()
    assert "yes" in file.getvalue()
    with pytest.raises(ValueError, match="LOUD"):
        configure_logging("json", "loud")


def access(code="OK", **more):
    known = {
        "request_id": "r1", "method": "Classify", "code": code, "images": 2, "total_ms": 12.5,
        "peer": "ipv4:127.0.0.1:50000",
    }  # fmt: skip
    return Access(**known, **more)


def write(log, one):
    if log.has_room(one.code):
        log.write(one)


def test_an_access_line_tells_what_is_known_and_nothing_else(lines):
    AccessLog(1, Metrics(), Clock()).write(access(model="shoes", version=3, decode_ms=4.5))
    (line,) = lines()
    del line["timestamp"]
    assert line == {
        "level": "info", "logger": "packshot.access", "event": "request", "request_id": "r1",
        "method": "Classify", "code": "OK", "images": 2, "total_ms": 12.5,
        "peer": "ipv4:127.0.0.1:50000", "model": "shoes", "version": 3, "decode_ms": 4.5,
    }  # fmt: skip


def test_above_the_rate_lines_are_counted_instead_and_the_next_tells_how_many(lines):
    clock, metrics = Clock(), Metrics()
    written = AccessLog(2, metrics, clock)
    for _ in range(5):
        write(written, access())
    assert [line.get("suppressed") for line in lines()] == [None, None]
    assert metrics.registry.get_sample_value("packshot_access_lines_suppressed_total") == 3
    clock.now += 0.5  # one line's worth
    for _ in range(2):
        write(written, access())
    assert [line.get("suppressed") for line in lines()] == [None, None, 3]
    clock.now += 3600  # saves up a second's worth, no more
    for _ in range(5):
        write(written, access())
    assert [line.get("suppressed") for line in lines()] == [None, None, 3, 1, None]


def test_errors_of_the_server_are_always_written(lines):
    written = AccessLog(0, Metrics(), Clock())
    for code in ("OK", "INVALID_ARGUMENT", "INTERNAL", "UNKNOWN", "RESOURCE_EXHAUSTED"):
        write(written, access(code))
    assert [(line["code"], line["level"]) for line in lines()] == [
        ("INTERNAL", "error"), ("UNKNOWN", "error"),
    ]  # fmt: skip
    assert lines()[0]["suppressed"] == 2


def test_less_than_one_line_a_second_still_gets_through(lines):
    clock = Clock()
    written = AccessLog(0.125, Metrics(), clock)
    for _ in range(17):
        write(written, access())
        clock.now += 1
    assert [line.get("suppressed") for line in lines()] == [None, 7, 7]


@pytest.mark.parametrize("sane", ["a", "7f3-B_2.x:y/z=+@", "x" * 64])
def test_the_clients_request_id_is_kept(sane):
    assert request_id([("user-agent", "x"), ("x-request-id", sane)]) == sane


@pytest.mark.parametrize("odd", ["", "x" * 65, "two words", "line\nbreak", "a\n", "ü", b"bytes"])
def test_an_odd_request_id_is_replaced(odd):
    assert re.fullmatch("[0-9a-f]{16}", request_id([("x-request-id", odd)]))


def test_requests_without_an_id_get_different_ones():
    assert len({request_id([]) for _ in range(100)}) == 100
