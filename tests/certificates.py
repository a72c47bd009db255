"""An authority for tests, and the certificates that it gives out, as PEM files."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID

NOW = datetime.now(UTC).replace(microsecond=0)
LONG_AGO = NOW - timedelta(days=9)


def named(name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])


class Authority:
    """Signs certificates, for 127.0.0.1 unless told otherwise."""

    def __init__(self, name: str = "authority", days: float = 9) -> None:
        self._name = named(name)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._signed(name, self._key, NOW + timedelta(days=days), is_ca=True)

    def pem(self, file: Path) -> Path:
        file.write_bytes(self.certificate.public_bytes(Encoding.PEM))
        return file

    def issue(
        self,
        cert: Path,
        key: Path,
        *,
        name: str = "server",
        host: str | None = None,
        days: float = 1,
        start: datetime = LONG_AGO,
        password: bytes = b"",
    ) -> x509.Certificate:
        """Writes a pair of files; with `days` below 0 it has expired already."""
        secret = ec.generate_private_key(ec.SECP256R1())
        issued = self._signed(name, secret, NOW + timedelta(days=days), host=host, start=start)
        secrecy = BestAvailableEncryption(password) if password else NoEncryption()
        key.write_bytes(secret.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, secrecy))
        cert.write_bytes(issued.public_bytes(Encoding.PEM))
        return issued

    def _signed(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        end: datetime,
        *,
        is_ca: bool = False,
        host: str | None = None,
        start: datetime = LONG_AGO,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(named(name))
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(start)
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        )
        if not is_ca:
            known_as = x509.DNSName(host) if host else x509.IPAddress(ip_address("127.0.0.1"))
            builder = builder.add_extension(x509.SubjectAlternativeName([known_as]), critical=False)
        return builder.sign(self._key, hashes.SHA256())
