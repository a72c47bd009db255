"""Classify a catalogue of images on the engine of a bundle, on one machine or a Ray cluster."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from annotated_types import Ge, Le

from deploy.ray.images import HTTP_TIMEOUT_SECONDS
from packshot.errors import PackshotError
from packshot.image import ImageLimits
from packshot.prediction import DEFAULT_TOP_K
from serving.ranking import Ranking
from serving.settings import Settings

DEFAULTS = {name: field.default for name, field in Settings.model_fields.items()}

MORE = """Writes Parquet: id, label, probability, labels, probabilities, abstained, reason, error,
model, version, engine. An image that cannot be used has reason and error in the place of a label.
OUTPUT/_SUCCESS is there when all are answered. Exit status: 0 that is so, 2 it is not."""


def main(arguments: Sequence[str] | None = None) -> int:
    given = parser().parse_args(arguments)
    try:
        return _run(given)
    except PackshotError as error:
        print(f"packshot: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # of a file system: no right, no credentials, a full disk
        print(f"packshot: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


def _run(given: argparse.Namespace) -> int:
    from deploy.ray.job import Options, Source, run  # Ray takes a second: --help need not wait

    started = time.monotonic()
    options = Options(
        models=given.models,
        model=given.model,
        version=given.version,
        source=Source(name=given.input, image_column=given.image_column, id_column=given.id_column),
        output=given.output,
        resume=given.resume,
        ranking=Ranking(top_k=given.top_k, min_confidence=given.min_confidence),
        limits=ImageLimits(max_bytes=given.max_image_bytes, max_pixels=given.max_image_pixels),
        engines=tuple(given.engines.split(",")),
        require=given.require,
        max_batch=given.max_batch,
        http_timeout_seconds=given.http_timeout_seconds,
        actors=given.actors,
        cpus_per_actor=given.cpus_per_actor,
        address=given.address,
    )
    done = run(options)
    seconds = time.monotonic() - started
    print(f"{given.output}: {done}; {seconds:.1f} s in all")
    return 0


def parser() -> argparse.ArgumentParser:
    command = argparse.ArgumentParser(
        prog="python -m deploy.ray.classify", description=__doc__, epilog=MORE, allow_abbrev=False
    )
    add = command.add_argument
    add("--models", type=Path, required=True, metavar="PATH",
        help="bundle store; on a cluster a path that all machines share")  # fmt: skip
    add("--model", required=True, metavar="NAME", help="model of the store")
    add(
        "--version",
        type=between(1),
        metavar="N",
        help="version (default: the one that would be served)",
    )
    add("--input", required=True, metavar="PATH|URI",
        help="folder of images, searched at any depth; or Parquet file or folder")  # fmt: skip
    add("--image-column", metavar="NAME",
        help="the input is Parquet; this column has images: bytes, paths or URLs")  # fmt: skip
    add("--id-column", metavar="NAME",
        help="Parquet column that names the images; needed where --image-column has bytes "
        "(default: the path or URL)")  # fmt: skip
    add("--output", required=True, metavar="PATH|URI", help="folder to write; it must not exist")
    add("--resume", action="store_true",
        help="go on with a folder that is there: answer what it has no answer to")  # fmt: skip
    add("--top-k", type=between(0), default=DEFAULT_TOP_K, metavar="N",
        help="labels an image (default: %(default)s)")  # fmt: skip
    add("--min-confidence", type=float, metavar="X",
        help="mark less probable answers abstained (default: the model's threshold)")  # fmt: skip
    add("--engines", default=",".join(DEFAULTS["engines"]), metavar="A,B",
        help="engines to try on each machine, in order (default: %(default)s)")  # fmt: skip
    add("--require", metavar="NAME", help="use this engine or fail")
    add("--max-batch", type=as_served("max_batch"), default=DEFAULTS["max_batch"], metavar="N",
        help="images a run of the engine (default: %(default)s)")  # fmt: skip
    add("--max-image-bytes", type=as_served("max_image_bytes"), metavar="N",
        default=DEFAULTS["max_image_bytes"],
        help="an image, encoded (default: %(default)s)")  # fmt: skip
    add("--max-image-pixels", type=as_served("max_image_pixels"), metavar="N",
        default=DEFAULTS["max_image_pixels"],
        help="width times height (default: %(default)s)")  # fmt: skip
    add("--http-timeout-seconds", type=between(0.001, 86_400.0), default=HTTP_TIMEOUT_SECONDS,
        metavar="S", help="an image that is a URL: its server's longest silence "
        "(default: %(default)s)")  # fmt: skip
    add("--actors", type=between(0), default=0, metavar="N",
        help="workers, an engine each (default: a core each, or a GPU each)")  # fmt: skip
    add("--cpus-per-actor", type=between(0), default=0, metavar="N",
        help="cores a worker decodes with (default: 1; beside a GPU its share)")  # fmt: skip
    add("--address", metavar="HOST:PORT",
        help="Ray cluster to run on (default: RAY_ADDRESS, else one of this machine)")  # fmt: skip
    return command


def between(low: float, high: float = math.inf) -> Callable[[str], float]:
    """A number of the kind of `low`, for argparse."""

    def number(text: str) -> float:
        value = type(low)(text)
        if not low <= value <= high:
            span = f"{low} or more" if high == math.inf else f"from {low} to {high}"
            raise argparse.ArgumentTypeError(f"{text} is out of range; it must be {span}")
        return value

    return number


def as_served(name: str) -> Callable[[str], float]:
    """The range of the server's setting of that name."""
    rules = Settings.model_fields[name].metadata
    (low,) = (rule.ge for rule in rules if isinstance(rule, Ge))
    (high,) = (rule.le for rule in rules if isinstance(rule, Le))
    return between(low, high)  # type: ignore[arg-type]  # both are numbers


if __name__ == "__main__":
    raise SystemExit(main())
