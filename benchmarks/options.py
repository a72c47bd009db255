"""What a benchmark is told: the model, and how long to measure it."""

import argparse
from pathlib import Path

import msgspec

from packshot.bundle import Bundle, open_bundle
from packshot.errors import EngineRefused
from packshot.store import current_version
from serving.engines.openvino import PRECISIONS, check_openvino
from serving.settings import Settings

SECONDS = 4.0
ROUNDS = 5
IMAGES = 64


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds`: of each measurement. `rounds`: of all of them, one after the other. `images`: that
    are drawn, and sent in turn.
    """

    models: Path
    model: str
    seconds: float
    rounds: int | None = None
    images: int = IMAGES

    def rounds_or(self, usual: int = ROUNDS) -> int:
        """As many as were asked for, or as the benchmark usually takes."""
        return usual if self.rounds is None else self.rounds

    def open_bundle(self) -> Bundle:
        """The version that is served."""
        folder = self.models / self.model
        return open_bundle(folder / str(current_version(folder)))


def cpu_engine(bundle: Bundle) -> str:
    """The first of the server's order that is in the manifest and runs on this CPU."""
    # A GPU's engines have no entries of these names: plans have their own, cuda runs fp32's file.
    order: tuple[str, ...] = Settings.model_fields["engines"].default
    there = [name for name in order if name in bundle.manifest.engines]
    return next(name for name in there if _runs_here(name))


def _runs_here(name: str) -> bool:
    if name not in PRECISIONS:
        return True
    try:
        check_openvino(name)
    except EngineRefused:
        return False
    return True


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=Path, default=Path("models"))
    parser.add_argument("--model", default="products")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of a measurement")
    parser.add_argument("--images", type=_at_least_one, default=IMAGES, help="that are sent")
    parser.add_argument("--rounds", type=_at_least_one, help="the median counts")


def parse_options(description: str | None) -> Options:
    parser = argparse.ArgumentParser(description=description)
    add_options(parser)
    return chosen(parser.parse_args())


def chosen(given: argparse.Namespace) -> Options:
    return Options(
        models=given.models,
        model=given.model,
        seconds=given.seconds,
        rounds=given.rounds,
        images=given.images,
    )


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: it must be a whole number from 1 on")
    return int(text)
