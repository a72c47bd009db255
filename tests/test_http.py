"""The HTTP port, and liveness as seen through it while the event loop hangs."""

import asyncio
import gzip
import http.client
import socket
import threading
import time

import pytest
from fakes import Clock
from processes import TIMEOUT
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.parser import text_string_to_metric_families

from packshot.errors import InvalidInput
from serving.http import HttpPort
from serving.liveness import Liveness


class States:
    """What the port is told about the server."""

    def __init__(self):
        self.live = self.ready = None


@pytest.fixture
def states():
    return States()


@pytest.fixture
def registry():
    registry = CollectorRegistry()
    Counter("photos_total", "Photos.", registry=registry).inc(3)
    return registry


@pytest.fixture
def port(states, registry):
    port = HttpPort("127.0.0.1", 0, registry, lambda: states.live, lambda: states.ready)
    yield port
    port.close()


def fetch(port, path, method="GET", **headers):
    connection = http.client.HTTPConnection("127.0.0.1", port.port, timeout=TIMEOUT)
    try:
        connection.request(method, path, headers=headers)
        reply = connection.getresponse()
        return reply.status, reply.headers, reply.read()
    finally:
        connection.close()


def connect(port):
    return socket.create_connection(("127.0.0.1", port.port), timeout=TIMEOUT)


def until(condition):
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"


def test_states_are_told_with_the_reason_in_one_line(port, states):
    assert fetch(port, "/livez")[::2] == (200, b"ok\n")
    assert fetch(port, "/readyz")[::2] == (200, b"ok\n")
    states.ready = "loading\n  the model"
    assert fetch(port, "/readyz")[::2] == (503, b"loading the model\n")
    assert fetch(port, "/livez")[0] == 200
    states.live = "stuck"
    assert fetch(port, "/livez?verbose")[::2] == (503, b"stuck\n")


def test_metrics_in_the_format_that_is_asked_for(port):
    status, headers, body = fetch(port, "/metrics")
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert "Server" not in headers
    families = {family.name: family for family in text_string_to_metric_families(body.decode())}
    assert families["photos"].samples[0].value == 3
    _, headers, zipped = fetch(port, "/metrics", **{"Accept-Encoding": "gzip"})
    assert headers["Content-Encoding"] == "gzip"
    assert gzip.decompress(zipped) == body
    accept = "application/openmetrics-text; version=1.0.0"
    _, headers, body = fetch(port, "/metrics", Accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_nothing_else_is_there(port):
    assert fetch(port, "/")[0] == 404
    assert fetch(port, "/livez/")[0] == 404
    status, headers, _ = fetch(port, "/metrics", method="POST")
    assert (status, headers["Server"]) == (501, None)


def test_head_tells_the_length_only(port):
    with connect(port) as connection:
        connection.sendall(b"HEAD /livez HTTP/1.0\r\n\r\n")
        reply = connection.makefile("rb").read()
    assert reply.startswith(b"HTTP/1.0 200 OK\r\n")
    assert reply.endswith(b"Content-Length: 3\r\n\r\n")


def test_a_check_that_fails_is_a_503_without_its_text(registry):
    def broken():
        raise RuntimeError("a secret")

    port = HttpPort("127.0.0.1", 0, registry, broken, broken)
    status, _, body = fetch(port, "/livez")
    assert status == 503
    assert b"secret" not in body
    port.close()


def test_a_silent_connection_is_closed(registry):
    port = HttpPort("127.0.0.1", 0, registry, lambda: None, lambda: None, silence_seconds=0.05)
    with connect(port) as silent:
        assert silent.recv(1) == b""
    with connect(port) as halting:
        halting.sendall(b"GET /livez HT")
        assert halting.recv(1) == b""
    port.close()


def test_probes_get_through_however_many_connections_are_held(registry):
    port = HttpPort(
        "127.0.0.1", 0, registry, lambda: None, lambda: None,
        silence_seconds=3600, max_connections=4,
    )  # fmt: skip
    before = threading.active_count()
    held = [connect(port) for _ in range(20)]
    assert fetch(port, "/livez")[0] == 200
    for connection in held[:16]:  # the oldest were cut, though they could have waited an hour
        assert connection.recv(1) == b""
    until(lambda: threading.active_count() <= before + 4)
    port.close()
    for connection in held:
        connection.close()


def test_a_taken_port_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(InvalidInput, match=f"--http-port {number} on 127.0.0.1"):
            HttpPort("127.0.0.1", number, CollectorRegistry(), lambda: None, lambda: None)


def test_a_closed_port_is_free_again(registry):
    first = HttpPort("127.0.0.1", 0, registry, lambda: None, lambda: None)
    assert fetch(first, "/livez")[0] == 200
    first.close()
    again = HttpPort("127.0.0.1", first.port, registry, lambda: None, lambda: None)
    again.close()


def test_nothing_is_written_to_stderr(port, capfd):
    fetch(port, "/livez")
    fetch(port, "/nowhere", method="PUT")
    with connect(port) as rude:
        rude.sendall(b"\x00\xff\r\n\r\n")
        while rude.recv(1000):
            pass
    assert capfd.readouterr().err == ""


def nothing_wrong() -> None:
    return None


def test_what_the_check_finds_is_told_for_as_long_as_it_lasts():
    found = None
    liveness = Liveness(lambda: found, hang_seconds=10)
    assert liveness.reason() is None
    found = "lane 1 has run for too long"
    assert liveness.reason() == "lane 1 has run for too long"
    found = None
    assert liveness.reason() is None


def test_a_loop_that_is_not_watched_yet_or_any_more_is_not_hung():
    async def watched(liveness, clock):
        liveness.start()
        clock.now += 9
        assert liveness.reason() is None
        clock.now += 2
        assert liveness.reason() == "the event loop has been stuck for 11.0 s"
        liveness.stop()
        assert liveness.reason() is None

    clock = Clock()
    liveness = Liveness(nothing_wrong, hang_seconds=10, clock=clock)
    clock.now += 1000
    assert liveness.reason() is None
    asyncio.run(watched(liveness, clock))


def test_a_blocked_loop_is_told_by_the_port_and_recovers(registry):
    clock = Clock()
    liveness = Liveness(nothing_wrong, hang_seconds=0.05, clock=clock)
    port = HttpPort("127.0.0.1", 0, registry, liveness.reason, lambda: None)
    blocked, release, end = threading.Event(), threading.Event(), asyncio.Event()
    loops = []

    def block():
        blocked.set()
        assert release.wait(TIMEOUT)

    async def run():
        loops.append(asyncio.get_running_loop())
        liveness.start()
        loops[0].call_soon(block)
        await end.wait()
        liveness.stop()

    thread = threading.Thread(target=asyncio.run, args=(run(),))
    thread.start()
    assert blocked.wait(TIMEOUT)
    assert fetch(port, "/livez")[0] == 200
    clock.now += 1
    assert fetch(port, "/livez")[::2] == (503, b"the event loop has been stuck for 1.0 s\n")
    release.set()
    until(lambda: fetch(port, "/livez")[0] == 200)
    loops[0].call_soon_threadsafe(end.set)
    thread.join(TIMEOUT)
    port.close()
