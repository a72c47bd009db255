"""TLS, client certificates and tokens: real certificates, sockets and processes."""

import json
import os
import re
import socket
import ssl
import subprocess
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import grpc
import pytest
from certificates import Authority
from cryptography import x509
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from processes import ROOT, TIMEOUT, Server, environment, program, serving
from tiny import PURE, jpeg

from packshot import Client, Tls
from packshot.channel import Connection, is_loopback, read_token
from packshot.errors import InvalidInput, PackshotError, Unauthenticated, Unavailable
from packshot.load import LoadPlan, run_load
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
from serving.api.probes import MOST_WATCHES
from serving.tokens import LOOK_SECONDS, Tokens
from serving.watched import stamp

RED = jpeg(PURE["red"])
TOKEN = "a-token-that-nobody-guesses"
SECOND = "another-token-for-rotation"


def until(condition) -> None:
    end = time.monotonic() + TIMEOUT
    while not condition():
        assert time.monotonic() < end, "it did not come to pass"


class Pki:
    """A folder with an authority's file and a pair of it for the server."""

    def __init__(self, folder):
        self.folder = folder
        self.authority = Authority()
        self.ca = self.authority.pem(folder / "ca.pem")
        self.cert, self.key = folder / "cert.pem", folder / "key.pem"
        self.first = self.authority.issue(self.cert, self.key)
        self.options = ("--tls-cert", self.cert, "--tls-key", self.key)
        self.tls = Tls(ca=self.ca)


@pytest.fixture
def pki(tmp_path):
    return Pki(tmp_path)


def served_certificate(server: Server) -> x509.Certificate:
    host, port = server.target.split(":")
    pem = ssl.get_server_certificate((host, int(port)), timeout=TIMEOUT)
    return x509.load_pem_x509_certificate(pem.encode())


def failure(server: Server, tls: Tls | bool, **options) -> PackshotError:
    with (
        Client(server.target, tls=tls, timeout_seconds=TIMEOUT, **options) as client,
        pytest.raises(PackshotError) as caught,
    ):
        client.model()
    return caught.value


def refused_to_start(*options: object) -> str:
    done = program("serving", "--port", 0, "--http-port", 0, *options)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("packshot: cannot")]
    return line


def test_tls(store, pki, tmp_path):
    with serving("--models", store, *pki.options) as server:
        with Client(server.target, tls=pki.tls, timeout_seconds=TIMEOUT) as client:
            assert client.classify(RED)[0].label == "red"
        namesake = Tls(ca=Authority().pem(tmp_path / "namesake.pem"))
        assert "certificate signature failure" in str(failure(server, namesake))
        assert "CERTIFICATE_VERIFY_FAILED" in str(failure(server, True))
        assert "running there, without TLS?" in str(failure(server, False))
        expiry = server.metric('packshot_certificate_expiry_timestamp_seconds{use="server"}')
        assert expiry == pki.first.not_valid_after_utc.timestamp()
        assert "certificate of CN=server, valid until" in server.log
    for line in server.lines:  # gRPC writes none of its own for strangers who fail to get in
        json.loads(line)


def test_the_usual_authorities_are_those_of_the_environment(store, pki, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(pki.ca))
    with (
        serving("--models", store, *pki.options) as server,
        Client(server.target, tls=True, timeout_seconds=TIMEOUT) as client,
    ):
        assert client.model().model == "colours"


def test_clients_without_a_certificate_are_kept_out(store, pki, tmp_path):
    pki.authority.issue(tmp_path / "me.pem", tmp_path / "me.key", name="client")
    Authority("authority").issue(tmp_path / "you.pem", tmp_path / "you.key", name="stranger")
    options = (*pki.options, "--tls-client-ca", pki.ca)
    with serving("--models", store, *options) as server:
        mine = Tls(ca=pki.ca, cert=tmp_path / "me.pem", key=tmp_path / "me.key")
        with Client(server.target, tls=mine, timeout_seconds=TIMEOUT) as client:
            assert client.classify(RED)[0].label == "red"
        assert isinstance(failure(server, pki.tls), Unavailable)
        yours = Tls(ca=pki.ca, cert=tmp_path / "you.pem", key=tmp_path / "you.key")
        assert isinstance(failure(server, yours), Unavailable)
        expiry = server.metric('packshot_certificate_expiry_timestamp_seconds{use="client_ca"}')
        assert expiry == pki.authority.certificate.not_valid_after_utc.timestamp()


def test_a_new_certificate_serves_new_connections_and_a_bad_one_does_not(store, pki):
    def reloads(result: str) -> float:
        return server.metric(f'packshot_certificate_reloads_total{{result="{result}"}}')

    with (
        serving("--models", store, *pki.options) as server,
        Client(server.target, tls=pki.tls, timeout_seconds=TIMEOUT) as client,
    ):
        assert served_certificate(server) == pki.first
        assert client.classify(RED)[0].label == "red"
        second = pki.authority.issue(pki.cert, pki.key, days=2)
        until(lambda: served_certificate(server) == second)
        assert reloads("swapped") == 1
        expiry = server.metric('packshot_certificate_expiry_timestamp_seconds{use="server"}')
        assert expiry == second.not_valid_after_utc.timestamp()

        pki.authority.issue(pki.cert, pki.folder / "not-its.key", days=3)
        assert served_certificate(server) == second
        assert served_certificate(server) == second
        assert reloads("refused") == 1
        assert server.log.count("is not the key of --tls-cert") == 1
        pki.authority.issue(pki.cert, pki.key, days=-1)
        assert served_certificate(server) == second
        assert reloads("refused") == 2
        pki.cert.unlink()
        assert served_certificate(server) == second
        assert reloads("refused") == 3

        last = pki.authority.issue(pki.cert, pki.key, days=4)
        until(lambda: served_certificate(server) == last)
        assert client.classify(RED)[0].label == "red", "an old connection goes on"


def test_a_certificate_that_comes_too_early_serves_as_soon_as_it_may(store, pki):
    """As where the clock of whoever renews it is ahead."""
    with serving("--models", store, *pki.options) as server:
        assert served_certificate(server) == pki.first
        soon = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)
        second = pki.authority.issue(pki.cert, pki.key, start=soon)
        assert served_certificate(server) == pki.first
        until(lambda: served_certificate(server) == second)
        assert datetime.now(UTC) >= soon
        assert server.log.count("is not valid before") == 1


def test_certificates_swapped_by_a_link_as_kubernetes_does(store, pki, tmp_path):
    mounted = tmp_path / "mounted"
    mounted.mkdir()

    def swap(folder: str):
        (mounted / folder).mkdir()
        pair = (mounted / folder / "tls.crt", mounted / folder / "tls.key")
        issued = pki.authority.issue(*pair)
        os.utime(pair[0], (1, 1))
        os.utime(pair[1], (1, 1))
        (mounted / "new").symlink_to(folder)
        (mounted / "new").rename(mounted / "..data")
        return issued

    first = swap("..1")
    (mounted / "tls.crt").symlink_to("..data/tls.crt")
    (mounted / "tls.key").symlink_to("..data/tls.key")
    options = ("--tls-cert", mounted / "tls.crt", "--tls-key", mounted / "tls.key")
    with serving("--models", store, *options) as server:
        assert served_certificate(server) == first
        second = swap("..2")
        until(lambda: served_certificate(server) == second)


def test_authorities_that_have_ended_beside_one_that_has_not(store, pki, tmp_path):
    ended = Authority("ended", days=-1).pem(tmp_path / "ended.pem")
    start = ("--models", store, *pki.options, "--tls-client-ca", ended)
    assert f"--tls-client-ca {ended} expired on" in refused_to_start(*start)
    for file in (ended, pki.cert):
        file.write_bytes(file.read_bytes() + pki.ca.read_bytes() + ended.read_bytes())
    pki.authority.issue(tmp_path / "me.pem", tmp_path / "me.key", name="client")
    mine = Tls(ca=pki.ca, cert=tmp_path / "me.pem", key=tmp_path / "me.key")
    with serving(*start) as server, Client(server.target, tls=mine) as client:
        assert client.model().model == "colours"


def test_start_with_certificates_that_cannot_serve(store, pki, tmp_path):
    start = ("--models", store, *pki.options)
    pki.authority.issue(pki.cert, pki.key, days=-2)
    assert re.search(rf"--tls-cert {pki.cert} expired on 20\S+ \S+ UTC", refused_to_start(*start))
    pki.authority.issue(pki.cert, tmp_path / "elsewhere.key")
    assert "is not the key of --tls-cert" in refused_to_start(*start)
    pki.authority.issue(pki.cert, pki.key, password=b"secret")
    assert "has a password" in refused_to_start(*start)
    pki.key.write_text("no key")
    assert f"--tls-key {pki.key} holds no PEM private key" in refused_to_start(*start)
    pki.cert.write_text("no certificate")
    assert f"--tls-cert {pki.cert} holds no PEM certificate" in refused_to_start(*start)


@pytest.fixture
def token_file(tmp_path):
    file = tmp_path / "tokens"
    file.write_text(f"# of the shop\n\n{TOKEN}\n")
    return file


HANDLED = (
    'grpc_server_handled_total{grpc_code="UNAUTHENTICATED",grpc_method="%s",grpc_service="%s",'
    'grpc_type="unary"}'
)


def test_only_calls_with_a_token_get_in(store, token_file):
    with serving("--models", store, "--token-file", token_file) as server:
        with Client(server.target, token=TOKEN, timeout_seconds=TIMEOUT) as client:
            assert client.classify([RED, RED])[1].label == "red"
            assert client.model().model == "colours"
        for wrong in (None, TOKEN + "x", TOKEN[:-1], TOKEN.upper()):
            error = failure(server, False, token=wrong)
            assert isinstance(error, Unauthenticated)
            assert str(error).startswith("a valid bearer token is needed")
        with (
            Client(server.target, token=SECOND, images_per_request=1) as client,
            pytest.raises(Unauthenticated),
        ):
            client.classify(RED)
        service = "packshot.v1.Classifier"
        assert server.metric(HANDLED % ("GetModel", service)) == 4
        assert server.metric(HANDLED % ("Classify", service)) == 1
        assert server.stop() == 0
        refused = [line for line in server.lines if '"code":"UNAUTHENTICATED"' in line]
        assert len(refused) == 5
        assert all('"logger":"packshot.access"' in line and '"peer":"' in line for line in refused)
        assert TOKEN not in server.log
        assert SECOND not in server.log


@contextmanager
def plain(server: Server):
    with grpc.insecure_channel(server.target) as channel:
        yield channel


def test_health_needs_no_token_and_everything_else_does(store, token_file):
    with serving("--models", store, "--token-file", token_file) as server, plain(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="packshot.v1.Classifier")
        assert health.Check(request, timeout=TIMEOUT).status == 1
        assert next(health.Watch(request, timeout=TIMEOUT)).status == 1
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(reflection.ServerReflectionInfo(iter([asked]), timeout=TIMEOUT))
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        for method in ("/made.up/Name", "/grpc.health.v1.HealthX/Check", "nonsense"):
            with pytest.raises(grpc.RpcError) as caught:
                channel.unary_unary(method)(b"", timeout=TIMEOUT)
            assert caught.value.code() is not grpc.StatusCode.OK
        assert server.metric(HANDLED % ("unknown", "unknown")) >= 2
        assert server.metric(HANDLED % ("Name", "made.up")) == 0


def first(watch) -> str:
    """The status that a Watch begins with, or what refused it."""
    try:
        return str(next(watch).status)
    except grpc.RpcError as error:
        return error.details()


def test_watching_the_health_takes_no_place_from_those_with_a_token(store, token_file):
    request = health_pb2.HealthCheckRequest()
    with serving("--models", store, "--token-file", token_file) as server, plain(server) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        watches = [health.Watch(request, timeout=TIMEOUT) for _ in range(400)]
        answers = [first(watch) for watch in watches]
        assert answers.count("1") == MOST_WATCHES
        refused = f"{MOST_WATCHES} clients watch the health already: use Check"
        assert answers.count(refused) == len(watches) - MOST_WATCHES
        assert health.Check(request, timeout=TIMEOUT).status == 1
        with Client(server.target, token=TOKEN, timeout_seconds=TIMEOUT) as client:
            assert client.classify(RED)[0].label == "red"
        for watch in watches:
            watch.cancel()
        # Those that went away have left their places.
        until(lambda: first(health.Watch(request, timeout=TIMEOUT)) == "1")
        assert server.log.count("no more may") >= 1


def test_only_the_bearer_scheme_counts(store, token_file):
    with serving("--models", store, "--token-file", token_file) as server, plain(server) as channel:
        stub = ClassifierStub(channel)
        for shown in (TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer ", f"Bearer {TOKEN} x"):
            with pytest.raises(grpc.RpcError) as caught:
                stub.GetModel(pb.GetModelRequest(), metadata=[("authorization", shown)])
            assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = [("authorization", f"bearer {TOKEN}")]
        assert stub.GetModel(pb.GetModelRequest(), metadata=metadata).model == "colours"


def accepted(server: Server, token: str) -> bool:
    with Client(server.target, token=token, timeout_seconds=TIMEOUT) as client:
        try:
            client.model()
        except Unauthenticated:
            return False
        return True


def test_tokens_are_rotated_while_it_serves(store, token_file):
    with serving("--models", store, "--token-file", token_file) as server:
        assert accepted(server, TOKEN)
        token_file.write_text(f"{TOKEN}\n{SECOND}\n")
        until(lambda: accepted(server, SECOND))
        assert accepted(server, TOKEN)
        token_file.write_text(f"{SECOND}\n")
        until(lambda: not accepted(server, TOKEN))
        assert accepted(server, SECOND)
        token_file.write_text("short\n")
        until(lambda: accepted(server, SECOND) and "the old tokens go on" in server.log)
        assert "line 1: 5 characters; a token has 16 or more" in server.log
        assert accepted(server, SECOND)
        assert server.stop() == 0
        assert not any(token in server.log for token in (TOKEN, SECOND, "short\n"))


def test_the_file_is_looked_at_once_a_second(token_file):
    now = [0.0]
    tokens = Tokens(token_file, clock=lambda: now[0])
    token_file.write_text(SECOND)
    now[0] = LOOK_SECONDS * 0.99
    assert (tokens.accept(TOKEN), tokens.accept(SECOND)) == (True, False)
    now[0] = LOOK_SECONDS
    assert (tokens.accept(TOKEN), tokens.accept(SECOND)) == (False, True)
    token_file.unlink()
    now[0] = LOOK_SECONDS * 2
    assert tokens.accept(SECOND), "the old ones go on"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "holds no token"),
        ("# nothing\n\n", "holds no token"),
        ("tooshort\n", "line 1: 8 characters; a token has 16 or more"),
        (f"{TOKEN}\nwith a space in it.\n", "line 2: a token is of printable ASCII"),
        ("jetons-de-caractères\n", "line 1: a token is of printable ASCII"),
        (b"\xff\xfe", "it is no text"),
    ],
)
def test_start_with_tokens_that_cannot_be_used(store, tmp_path, text, why):
    file = tmp_path / "tokens"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    message = refused_to_start("--models", store, "--token-file", file)
    assert why in message
    assert f"--token-file {file}" in message
    assert "tooshort" not in message


def test_readable_tokens_on_a_network_are_warned_of(store, token_file, pki):
    options = ("--models", store, "--host", "0.0.0.0", "--token-file", token_file)
    with serving(*options) as server:
        assert "TOKENS TRAVEL IN PLAIN TEXT on 0.0.0.0" in server.log
    with serving(*options, *pki.options) as server:
        assert "PLAIN TEXT" not in server.log


def test_the_client_does_not_send_a_token_in_plain_text_over_a_network():
    for target in ("shop.example:8001", "10.0.0.1:8001", "ipv4:10.0.0.1:1,127.0.0.1:1"):
        with pytest.raises(InvalidInput, match="would travel in plain text: connect by TLS"):
            Client(target, token=TOKEN)
        Client(target, token=TOKEN, tls=True).close()
        Client(target).close()
    for target in ("localhost:1", "127.0.0.2:1", "[::1]:1", "unix:/tmp/x", "dns:///localhost:1"):
        Client(target, token=TOKEN).close()
    with pytest.raises(InvalidInput, match="printable ASCII"):
        Client("localhost:1", token="a\nb")
    assert TOKEN not in repr(Connection(target="localhost:1", token=TOKEN))


@pytest.fixture
def proxy(monkeypatch):
    """The socket of a proxy that the environment names: it accepts, and never answers."""
    for name in ("grpc_proxy", "https_proxy", "no_grpc_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{listener.getsockname()[1]}")
        yield listener


def test_calls_to_this_machine_and_their_token_go_to_no_proxy(store, token_file, proxy, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    quick, shown = ("--timeout", 20), ("--token-file", token_file)
    with serving("--models", store, *shown) as server:
        done = command(server, "classify", *quick, *shown, tmp_path / "red.jpg")
        assert (done.returncode, done.stdout.split()[1:2]) == (0, ["red"]), done.stderr
        done = command(server, "probe", *quick)
        assert done.returncode == 0, done.stderr
        for api in ("packshot", "open-inference"):
            timing = ("--seconds", 0.5, "--rate", 4, "--arrivals", "constant", "--warmup", 0)
            asked = ("--api", api, "--model", "colours", tmp_path / "red.jpg", "--json")
            done = command(server, "load", *quick, *shown, *timing, *asked)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout)["run"]["answered"] == 2, done.stderr
    proxy.setblocking(False)
    with pytest.raises(BlockingIOError):
        proxy.accept()


def test_calls_by_tls_over_a_network_use_the_proxy(proxy):
    proxy.settimeout(TIMEOUT)
    with Connection(target="shop.example:443", tls=True, token=TOKEN).channel(()) as channel:
        channel.subscribe(lambda _: None, try_to_connect=True)
        with proxy.accept()[0] as asked:
            head = asked.recv(4096)
    assert head.startswith(b"CONNECT shop.example:443 ")
    assert TOKEN.encode() not in head


def test_a_client_certificate_needs_its_key(tmp_path):
    with pytest.raises(InvalidInput, match="give both"):
        Tls(cert=tmp_path / "cert.pem")
    with pytest.raises(InvalidInput, match=r"missing\.pem: No such file"):
        Client("localhost:1", tls=Tls(ca=tmp_path / "missing.pem"))


def test_a_file_that_becomes_readable_has_changed(tmp_path):
    file = tmp_path / "tokens"
    file.touch(0o600)
    before = stamp(file)
    assert stamp(file) == before
    file.chmod(0o644)
    assert stamp(file) != before


def test_loopback():
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "10.0.0.1", "shop", "")))


def command(server: Server, verb: str, *arguments: object, **variables: str):
    return subprocess.run(
        [sys.executable, "-m", "packshot.cli", verb, "--target", server.target,
         *map(str, arguments)],
        cwd=ROOT, text=True, capture_output=True, timeout=TIMEOUT, env=environment(**variables),
    )  # fmt: skip


def test_the_command_line_by_tls_with_a_token(store, pki, token_file, tmp_path):
    (tmp_path / "red.jpg").write_bytes(RED)
    options = (*pki.options, "--tls-client-ca", pki.ca, "--token-file", token_file)
    pki.authority.issue(tmp_path / "me.pem", tmp_path / "me.key", name="client")
    shown = ("--ca", pki.ca, "--cert", tmp_path / "me.pem", "--key", tmp_path / "me.key")
    with serving("--models", store, *options) as server:
        done = command(server, "classify", *shown, tmp_path / "red.jpg", PACKSHOT_TOKEN=TOKEN)
        assert (done.returncode, done.stdout.split()[1]) == (0, "red"), done.stderr
        done = command(server, "model", *shown, "--token-file", token_file)
        assert json.loads(done.stdout)["model"] == "colours"
        timing = ("--seconds", 0.5, "--rate", 4, "--arrivals", "constant", "--warmup", 0)
        images = (tmp_path / "red.jpg", *timing, "--json")
        done = command(server, "load", *shown, "--token-file", token_file, *images)
        assert json.loads(done.stdout)["run"]["answered"] == 2, done.stderr
        assert TOKEN not in done.stdout
        done = command(server, "model", *shown)
        assert (done.returncode, done.stderr[:32]) == (2, "packshot: a valid bearer token i")
        done = command(server, "load", *shown, *images)
        assert (done.returncode, done.stderr[:32]) == (2, "packshot: a valid bearer token i")
        done = command(server, "model", "--tls", "--token-file", tmp_path / "none")
        assert (done.returncode, "No such file" in done.stderr) == (2, True)


def test_a_certificate_for_another_name_is_taken_where_it_is_told(store, tmp_path):
    pki = Pki(tmp_path)
    pki.authority.issue(pki.cert, pki.key, name="packshot.shop", host="packshot.shop")
    (tmp_path / "red.jpg").write_bytes(RED)
    named = ("--ca", pki.ca, "--server-name", "packshot.shop")
    with serving("--models", store, *pki.options) as server:
        done = command(server, "model", "--ca", pki.ca, "--timeout", 2)
        assert (done.returncode, done.stdout) == (2, "")
        done = command(server, "model", *named)
        assert json.loads(done.stdout)["model"] == "colours", done.stderr
        timing = ("--seconds", 0.5, "--rate", 4, "--arrivals", "constant", "--warmup", 0)
        done = command(server, "load", *named, tmp_path / "red.jpg", *timing, "--json")
        assert json.loads(done.stdout)["run"]["answered"] == 2, done.stderr


def test_the_load_tester_by_tls(store, pki):
    with serving("--models", store, *pki.options) as server:
        plan = LoadPlan(
            target=server.target, rate=4, arrivals="constant", seconds=0.5, warmup_seconds=0
        )
        assert run_load(plan, [RED], tls=pki.tls).answered == 2


def test_the_first_token_of_a_file_is_the_clients(token_file):
    assert read_token(token_file) == TOKEN
    token_file.write_text("# none\n")
    with pytest.raises(InvalidInput, match="holds no token"):
        read_token(token_file)
