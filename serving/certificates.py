"""TLS: the server's certificate, checked before it serves and renewed without a restart."""

import logging
import math
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import grpc
import msgspec
from cryptography.hazmat.primitives.asymmetric.types import PublicKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509 import Certificate, load_pem_x509_certificates

from packshot.errors import InvalidInput
from serving.metrics import Metrics
from serving.watched import stamp

log = logging.getLogger("packshot.certificates")


class TlsFiles(msgspec.Struct, frozen=True, kw_only=True):
    """PEM files. With `client_ca`, clients must show a certificate of these authorities."""

    cert: Path
    key: Path
    client_ca: Path | None

    @property
    def all(self) -> tuple[Path, ...]:
        return (self.cert, self.key, *([self.client_ca] if self.client_ca else []))


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """What was read and found right. Times are seconds since 1970."""

    configuration: grpc.ServerCertificateConfiguration
    subject: str
    expires: float
    client_ca_expires: float | None


class TooEarly(InvalidInput):
    """It will be valid at `starts`, in seconds since 1970: clocks differ by a little."""

    def __init__(self, text: str, *, starts: float) -> None:
        super().__init__(text)
        self.starts = starts


class Certificates:
    """The certificate that serves. gRPC asks for it before each handshake, from its own threads."""

    def __init__(self, files: TlsFiles, metrics: Metrics) -> None:
        """Raises InvalidInput for a certificate that cannot serve."""
        self._files = files
        self._metrics = metrics
        self._lock = threading.Lock()
        self._stamp = stamp(*files.all)
        self._again_at = math.inf  # seconds since 1970: when a pair that is too early may serve
        self._pair = _read(files)
        self._tell()

    def credentials(self) -> grpc.ServerCredentials:
        return grpc.dynamic_ssl_server_credentials(
            self._pair.configuration,
            self._changed,  # type: ignore[arg-type]  # the stub leaves out None, for no change
            require_client_authentication=self._files.client_ca is not None,
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """What replaces the certificate in use; None: nothing new, or nothing better."""
        with self._lock:
            # Before reading: what is written meanwhile differs from it, and is read the next time.
            now = stamp(*self._files.all)
            if now == self._stamp and time.time() < self._again_at:
                return None
            self._stamp, self._again_at = now, math.inf
            try:
                self._pair = _read(self._files)
            except InvalidInput as error:
                if isinstance(error, TooEarly):
                    self._again_at = error.starts
                self._metrics.certificate_reloads.labels("refused").inc()
                log.error("the old certificate goes on: %s", error)
                return None
            self._metrics.certificate_reloads.labels("swapped").inc()
            self._tell()
            return self._pair.configuration

    def _tell(self) -> None:
        pair = self._pair
        self._metrics.certificate_expiry.labels("server").set(pair.expires)
        if pair.client_ca_expires is not None:
            self._metrics.certificate_expiry.labels("client_ca").set(pair.client_ca_expires)
        until = datetime.fromtimestamp(pair.expires, UTC)
        log.info("certificate of %s, valid until %s", pair.subject, f"{until:%Y-%m-%d %H:%M} UTC")


def _read(files: TlsFiles) -> Pair:
    """Raises InvalidInput, naming the file, for a pair that no client would accept."""
    cert, chain = _certificates("--tls-cert", files.cert)
    key, public = _private_key(files.key)
    if _spki(public) != _spki(chain[0].public_key()):
        raise InvalidInput(f"--tls-key {files.key} is not the key of --tls-cert {files.cert}")
    _refuse_if_ended("--tls-cert", files.cert, chain[0])
    authorities, roots = None, None
    if files.client_ca is not None:
        authorities, roots = _certificates("--tls-client-ca", files.client_ca)
        _refuse_if_ended("--tls-client-ca", files.client_ca, max(roots, key=_expires))
    return Pair(
        configuration=grpc.ssl_server_certificate_configuration([(key, cert)], authorities),
        subject=chain[0].subject.rfc4514_string() or "no name",
        expires=_expires(chain[0]),
        client_ca_expires=max(map(_expires, roots)) if roots else None,
    )


def _certificates(option: str, file: Path) -> tuple[bytes, Sequence[Certificate]]:
    """The file's bytes and what they hold, one or more."""
    content = _content(option, file)
    try:
        return content, load_pem_x509_certificates(content)
    except ValueError as error:
        raise InvalidInput(f"{option} {file} holds no PEM certificate: {error}") from error


def _refuse_if_ended(option: str, file: Path, one: Certificate) -> None:
    """Of the server's own certificate, and of the authority that lasts longest.

    Others in the file may have ended: roots that are being replaced, or that cross-signed a chain.
    """
    now, start, end = datetime.now(UTC), one.not_valid_before_utc, one.not_valid_after_utc
    if end < now:
        raise InvalidInput(f"{option} {file} expired on {end:%Y-%m-%d %H:%M} UTC: renew it")
    if start > now:
        told = f"{option} {file} is not valid before {start:%Y-%m-%d %H:%M:%S} UTC"
        raise TooEarly(told, starts=start.timestamp())


def _private_key(file: Path) -> tuple[bytes, PublicKeyTypes]:
    """The file's bytes and the key's public half."""
    content = _content("--tls-key", file)
    try:
        key = load_pem_private_key(content, password=None)
    except TypeError as error:
        raise InvalidInput(f"--tls-key {file} has a password: give a key without one") from error
    except Exception as error:  # cryptography's errors share no narrower base class
        # Not the error's own text: it must not quote what is in the file.
        raise InvalidInput(f"--tls-key {file} holds no PEM private key") from error
    return content, key.public_key()


def _content(option: str, file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise InvalidInput(f"{option} {file} cannot be read: {error.strerror}") from error


def _spki(key: PublicKeyTypes) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _expires(one: Certificate) -> float:
    return one.not_valid_after_utc.timestamp()
