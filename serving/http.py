"""The HTTP port: /livez, /readyz and /metrics, from threads that do not need the event loop."""

import gzip
import logging
import socket
import socketserver
import threading
from collections import OrderedDict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder, gzip_accepted

from packshot.errors import InvalidInput

log = logging.getLogger("packshot.http")

Reason = Callable[[], str | None]  # None: fine; else what is wrong
PLAIN = "text/plain; charset=utf-8"
SILENCE_SECONDS = 5.0  # a connection that neither sends nor takes anything is closed
MAX_CONNECTIONS = 16


class HttpPort:
    """Serves from its making until `close`; `port` is the one taken."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        live: Reason,
        ready: Reason,
        *,
        silence_seconds: float = SILENCE_SECONDS,
        max_connections: int = MAX_CONNECTIONS,
    ) -> None:
        """Port 0 takes a free one. Raises InvalidInput if host or port cannot be had."""
        pages = _Pages(registry, live, ready, silence_seconds)
        try:
            self._server = _Server(host, port, pages, max_connections)
        except OSError as error:
            raise InvalidInput(
                f"--http-port {port} on {host} cannot be used: {error.strerror}"
            ) from error
        self.port = int(self._server.server_address[1])
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), name="http", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Stops answering; takes up to 0.1 s."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Pages(NamedTuple):
    registry: CollectorRegistry
    live: Reason
    ready: Reason
    silence_seconds: float


class _Server(socketserver.ThreadingTCPServer):
    """A thread a connection. Above the limit the oldest is cut: a probe must always get through."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64

    def __init__(self, host: str, port: int, pages: _Pages, max_connections: int) -> None:
        self.address_family, address = _looked_up(host, port)
        self.pages = pages
        self._max_connections = max_connections
        self._open: OrderedDict[int, socket.socket] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__((address, port), _Handler)

    def process_request(self, request: socket.socket, client_address: object) -> None:  # type: ignore[override]  # of TCP only
        with self._lock:
            if len(self._open) >= self._max_connections:
                _, oldest = self._open.popitem(last=False)
                _cut(oldest)
            self._open[id(request)] = request
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]  # of TCP only
        with self._lock:
            self._open.pop(id(request), None)
        super().shutdown_request(request)

    def handle_error(self, request: object, client_address: object) -> None:  # noqa: ARG002 - given by socketserver
        # A client that went away or fell silent is no news; it must not fill the log.
        log.debug("an HTTP connection from %s failed", client_address, exc_info=True)


def _looked_up(host: str, port: int) -> tuple[socket.AddressFamily, str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (socket.gaierror, ValueError) as error:  # the latter for what no name can be
        raise InvalidInput(
            f"--host is {host!r}, which cannot be looked up; give an address of this machine, or "
            "0.0.0.0 for all"
        ) from error
    family, _, _, _, (address, *_) = found[0]
    return family, str(address)


def _cut(connection: socket.socket) -> None:
    """Wakes the thread that reads from it."""
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return  # gone already


class _Handler(BaseHTTPRequestHandler):
    """One GET or HEAD a connection; any other method is answered 501."""

    server: _Server
    error_content_type = PLAIN
    error_message_format = "%(message)s\n"

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(self.server.pages.silence_seconds)

    def do_GET(self) -> None:
        pages = self.server.pages
        match self.path.partition("?")[0]:
            case "/livez":
                self._answer_state(pages.live)
            case "/readyz":
                self._answer_state(pages.ready)
            case "/metrics":
                self._answer_metrics(pages.registry)
            case _:
                self._answer(404, b"not found; there are /livez, /readyz and /metrics\n")

    do_HEAD = do_GET  # noqa: N815 - named by http.server

    def _answer_state(self, ask: Reason) -> None:
        try:
            reason = ask()
        except Exception:
            log.exception("a check failed")
            reason = "a check failed: the server's log has it"
        line = "ok" if reason is None else " ".join(reason.split())
        self._answer(200 if reason is None else 503, f"{line}\n".encode())

    def _answer_metrics(self, registry: CollectorRegistry) -> None:
        encode, kind = choose_encoder(self.headers.get("Accept", ""))
        body, headers = encode(registry), {"Content-Type": kind}
        if gzip_accepted(self.headers.get("Accept-Encoding", "")):
            body, headers["Content-Encoding"] = gzip.compress(body, compresslevel=1), "gzip"
        self._answer(200, body, headers)

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response_only(status)
        for name, value in {"Content-Type": PLAIN, **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_header(self, keyword: str, value: str) -> None:
        if keyword != "Server":  # nobody needs to know the version of Python
            super().send_header(keyword, value)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - named by http.server
        """Probes and scrapes are not logged."""
