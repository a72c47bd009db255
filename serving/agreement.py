"""Settings that are right alone and make no sense together, or beside what is on the disk."""

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from packshot.errors import InvalidInput
from serving.sources import is_missing
from serving.wording import flag, spelled

if TYPE_CHECKING:
    from serving.settings import Settings


def check_agreement(settings: "Settings") -> None:
    """Raises InvalidInput for the first that it finds, with the remedy."""
    _check_files(settings)
    _check_security(settings)
    _check_choices(settings)
    _check_limits(settings)


def _check_files(settings: "Settings") -> None:
    for name in ("tls_cert", "tls_key", "tls_client_ca", "token_file"):
        path = getattr(settings, name)
        if path is not None and is_missing(path):
            raise InvalidInput(f"{_spelled(settings, name)} {path}: there is no such file")


def _check_security(settings: "Settings") -> None:
    for name, other in (
        ("tls_cert", "tls_key"), ("tls_key", "tls_cert"), ("tls_client_ca", "tls_cert"),
    ):  # fmt: skip
        if getattr(settings, name) is not None and getattr(settings, other) is None:
            raise InvalidInput(
                f"{_spelled(settings, name)} is given without {flag(other)}: give both"
            )
    if settings.otlp_endpoint is not None and "@" in _netloc(settings, settings.otlp_endpoint):
        raise InvalidInput(
            f"{_spelled(settings, 'otlp_endpoint')} has a user or a password in it, which the log "
            "would show: give what the collector wants in OTEL_EXPORTER_OTLP_HEADERS"
        )


def _netloc(settings: "Settings", endpoint: str) -> str:
    try:
        return urlsplit(endpoint).netloc
    except ValueError as error:  # an address with one bracket, say; a password may be in it
        raise InvalidInput(
            f"{_spelled(settings, 'otlp_endpoint')} is no URL; it must be like "
            "http://127.0.0.1:4317"
        ) from error


def _check_choices(settings: "Settings") -> None:
    for name, among in (("default_model", "model"), ("require", "engines")):
        one, all_of_them = getattr(settings, name), getattr(settings, among)
        if one is not None and all_of_them and one not in all_of_them:
            raise InvalidInput(
                f"{_spelled(settings, name)} is {one!r}, which is not among "
                f"{_spelled(settings, among)} {','.join(all_of_them)}: add it there"
            )
    if settings.port == settings.http_port != 0:
        raise InvalidInput(
            f"{_spelled(settings, 'port')} and {_spelled(settings, 'http_port')} are both "
            f"{settings.port}: give each a port of its own"
        )


def _check_limits(settings: "Settings") -> None:
    for part, whole, why in (
        ("max_images_per_request", "max_queued_images", "such a request"),
        ("max_image_bytes", "max_message_bytes", "such an image"),
        ("max_image_bytes", "max_queued_bytes", "such an image"),
    ):
        if getattr(settings, part) > getattr(settings, whole):
            raise InvalidInput(
                f"{_spelled(settings, part)} is {getattr(settings, part)}, above "
                f"{_spelled(settings, whole)} {getattr(settings, whole)}: {why} could never be "
                "taken; lower the first or raise the second"
            )


def _spelled(settings: "Settings", name: str) -> str:
    return spelled(name, settings.origins, settings.config)
