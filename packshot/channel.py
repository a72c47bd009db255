"""How to reach a server: plain or by TLS, with or without a token, for sync and asyncio callers."""

import re
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import grpc
import msgspec

from packshot.errors import InvalidInput

Options = Sequence[tuple[str, Any]]

# https://github.com/grpc/grpc/blob/master/doc/naming.md
SCHEME = re.compile("(dns|unix|unix-abstract|vsock|ipv4|ipv6|xds|google-c2p):")
HOST = re.compile(r"[^\s:/@\[\]]+|\[[0-9A-Fa-f:.]+(%[^\s\]]+)?\]")
PORT = re.compile(r":([0-9]{1,9})\Z")
MOST_PORTS = 65_535


class Tls(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files: `ca` holds the authorities to trust; `cert` and `key` show who the client is.

    Without `ca` those count that SSL_CERT_FILE or OpenSSL names, or else the ones gRPC brings.
    `server_name`: in the server's certificate, where the target has another, as by a port-forward.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise InvalidInput("a client's certificate and its key go together: give both")

    def credentials(self) -> grpc.ChannelCredentials:
        """Raises InvalidInput for a file that cannot be read."""
        authorities = self.ca or ssl.get_default_verify_paths().cafile
        return grpc.ssl_channel_credentials(
            _content(authorities), _content(self.key), _content(self.cert)
        )


@dataclass(frozen=True, kw_only=True)
class Connection:
    """One server and how to be let in.

    Raises InvalidInput for a target that cannot be one, and where a token would go out readable.
    """

    target: str
    tls: Tls | bool = False
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        check_target(self.target)
        if self.token is None:
            return
        if not self.token.isascii() or not self.token.isprintable() or " " in self.token:
            raise InvalidInput("the token is empty or has other than printable ASCII characters")
        if not self.tls and not _is_local(self.target):
            raise InvalidInput(
                f"a token for {self.target} would travel in plain text: connect by TLS (tls=True, "
                "or --tls on the command line)"
            )

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Of every call. gRPC's own call credentials would need TLS also on this machine."""
        return (("authorization", f"Bearer {self.token}"),) if self.token is not None else ()

    def unanswered(self, details: str) -> str:
        """What to say where gRPC found nobody to talk to, for its reasons."""
        how = "with" if self.tls else "without"
        hint = f"is a server running there, {how} TLS?"
        if "Expected SETTINGS frame" in details:
            hint = (
                "what listens there does not speak gRPC: is it the server's HTTP port? Its gRPC "
                "port is another, 8001 by default"
            )
        return f"no answer from {self.target}: {details} ({hint})"

    def channel(self, options: Options) -> grpc.Channel:
        credentials, options = self._credentials(), [*options, *self._options()]
        if credentials is None:
            return grpc.insecure_channel(self.target, options=options)
        return grpc.secure_channel(self.target, credentials, options=options)

    def aio_channel(self, options: Options) -> grpc.aio.Channel:
        credentials, options = self._credentials(), [*options, *self._options()]
        if credentials is None:
            return grpc.aio.insecure_channel(self.target, options=options)
        return grpc.aio.secure_channel(self.target, credentials, options=options)

    def _options(self) -> Iterator[tuple[str, Any]]:
        if isinstance(self.tls, Tls) and self.tls.server_name:
            yield "grpc.ssl_target_name_override", self.tls.server_name
        # Without TLS a token goes to such targets only. A proxy that http_proxy names would read
        # it, and its 127.0.0.1 is another one. For other targets a proxy is used as gRPC does.
        if _is_local(self.target):
            yield "grpc.enable_http_proxy", 0

    def _credentials(self) -> grpc.ChannelCredentials | None:
        if not self.tls:
            return None
        return (self.tls if isinstance(self.tls, Tls) else Tls()).credentials()


def check_target(target: str) -> None:
    """Raises InvalidInput where gRPC would take another port than was meant, or find no host.

    Of gRPC's schemes it knows best what may follow, but a port of dns: it cuts to 16 bits, too.
    """
    scheme, port = SCHEME.match(target), PORT.search(target)
    if port and not 1 <= int(port[1]) <= MOST_PORTS:
        fits = scheme is not None and scheme[1] != "dns"
    else:
        fits = scheme is not None or (port and HOST.fullmatch(target, 0, port.start()))
    if fits:
        return
    raise InvalidInput(
        f"the target is {target!r}; it must be host:port, an IPv6 address in brackets, the port "
        f"from 1 to {MOST_PORTS}, such as 127.0.0.1:8001 or [::1]:8001, or a name of gRPC's such "
        "as dns:///shop.example:8001 or unix:/run/packshot.sock"
    )


def endpoint(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def is_loopback(host: str) -> bool:
    """Whether nothing said to this host leaves the machine."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def read_token(file: Path) -> str:
    """The first token of a file as the server reads it: one a line, # for comments."""
    text = (_content(file) or b"").decode(errors="replace")
    lines = (line.strip() for line in text.splitlines())
    for line in lines:
        if line and not line.startswith("#"):
            return line
    raise InvalidInput(f"{file} holds no token: write one a line")


def _is_local(target: str) -> bool:
    """Of a gRPC name: host:port, unix:path, or either with a resolver before it."""
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    name = target.rpartition("/")[2].removeprefix("dns:").removeprefix("ipv4:")
    return is_loopback(name.removeprefix("ipv6:").rpartition(":")[0])


def _content(file: str | Path | None) -> bytes | None:
    if file is None:
        return None
    try:
        return Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"{file}: {error.strerror}") from error
