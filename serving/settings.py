"""What the server is told: flags become one record, checked once, where the program starts."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import msgspec

from packshot.errors import InvalidInput

CPU_ENGINES = ("int8", "fp32")


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """Raises InvalidInput, naming option, value and range, if a value makes no sense."""

    models: Path
    model: str | None = None
    host: str = "127.0.0.1"
    port: int = 8001
    metrics_port: int = 8002
    engines: tuple[str, ...] = CPU_ENGINES
    lanes: int = 0
    max_batch: int = 8
    max_queued_images: int = 256
    max_queued_bytes: int = 512 * 1024 * 1024
    max_images_per_request: int = 32
    max_image_bytes: int = 20 * 1024 * 1024
    max_image_pixels: int = 50_000_000
    max_message_bytes: int = 64 * 1024 * 1024
    default_timeout_ms: int = 10_000
    reload_seconds: float = 2.0
    drain_delay_seconds: float = 0.0
    drain_timeout_seconds: float = 20.0

    def __post_init__(self) -> None:
        for name, (low, high) in RANGES.items():
            value = getattr(self, name)
            if not low <= value <= high:
                option = f"--{name.replace('_', '-')}"
                raise InvalidInput(f"{option} is {value}; it must be from {low} to {high}")
        if self.max_images_per_request > self.max_queued_images:
            raise InvalidInput(
                f"--max-images-per-request is {self.max_images_per_request}, above "
                f"--max-queued-images {self.max_queued_images}: such a request could never be taken"
            )


RANGES: dict[str, tuple[float, float]] = {
    "port": (0, 65535),
    "metrics_port": (0, 65535),
    "lanes": (0, 256),
    "max_batch": (1, 256),
    "max_queued_images": (1, 100_000),
    "max_queued_bytes": (1 << 20, 1 << 40),
    "max_images_per_request": (1, 1024),
    "max_image_bytes": (1, 1 << 30),
    "max_image_pixels": (1, 89_000_000),  # above this Pillow has a limit of its own
    "max_message_bytes": (1 << 16, 1 << 30),
    "default_timeout_ms": (1, 3_600_000),
    "reload_seconds": (0, 86_400),
    "drain_delay_seconds": (0, 3600),
    "drain_timeout_seconds": (0, 3600),
}

HELP = {
    "models": "folder of bundles, as the exporter writes them",
    "model": "name of the model to serve (default: the only one there)",
    "host": "address to listen on; 0.0.0.0 for all",
    "port": "gRPC port; 0 takes a free one",
    "metrics_port": "Prometheus port; 0 takes a free one",
    "engines": "engines to try, in order",
    "lanes": "batches run at the same time, one thread each; 0: one per core",
    "max_batch": "images per run of the engine",
    "max_queued_images": "images taken in at a time; more are refused",
    "max_queued_bytes": "bytes of images taken in at a time; more are refused",
    "max_images_per_request": "more are refused",
    "max_image_bytes": "per encoded image",
    "max_image_pixels": "width times height; decoding takes up to 16 bytes a pixel, on every core",
    "max_message_bytes": "per request",
    "default_timeout_ms": "for requests without a deadline",
    "reload_seconds": "look for another version this often; 0: on SIGHUP only",
    "drain_delay_seconds": "on SIGTERM, go on accepting this long after reporting not ready",
    "drain_timeout_seconds": "then wait at most this long for requests in flight",
}


def parse_settings(arguments: Sequence[str] | None = None) -> Settings:
    """Raises InvalidInput for a value out of its range."""
    parser = argparse.ArgumentParser(
        prog="python -m serving",
        description="Serve the newest (or released) version of a bundle over gRPC.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for field in msgspec.structs.fields(Settings):
        option = f"--{field.name.replace('_', '-')}"
        if field.name == "models":
            parser.add_argument(option, type=Path, required=True, help=HELP[field.name])
        elif field.name == "engines":
            parser.add_argument(
                option,
                type=lambda text: tuple(part for part in text.split(",") if part),
                default=",".join(CPU_ENGINES),
                help=HELP[field.name],
            )
        else:
            kind = str if field.default is None else type(field.default)
            parser.add_argument(option, type=kind, default=field.default, help=HELP[field.name])
    return Settings(**vars(parser.parse_args(arguments)))
