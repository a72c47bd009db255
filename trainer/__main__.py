"""`python -m trainer --data DIR`: a folder of labelled images in, a checkpoint and a report out."""

import argparse
import sys
from pathlib import Path
from typing import get_args

import torch

from packshot.cores import available_cores
from packshot.errors import PackshotError
from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import set_aside
from trainer.data import Split, load_split
from trainer.evaluate import Evaluation
from trainer.loop import Interrupt, Log, Training, brief, finish, say, train
from trainer.model import (
    ARCHITECTURES,
    PixelNetwork,
    Weights,
    WeightsUnavailable,
    architecture,
    load_weights,
    new_network,
)
from trainer.recipes import FINE_TUNE, RANGES, ClassWeights, Options, Sampler, recipe_for
from trainer.report import REPORT
from trainer.review import data_figures, reviewed

FRAME = "=" * 78
FALLBACK_WARNING = (
    "WARNING: training from RANDOM weights instead, with a recipe made for that.\n"
    "It will do for the drawn sample catalogue; it will NOT do for photographs.\n"
    "The checkpoint and the report say so."
)
MAX_DEFAULT_WORKERS = 16


def main() -> int:
    try:
        return run(parse_options())
    except PackshotError as error:
        # An error in a loader process arrives with that process's traceback in front of it.
        message = str(error)
        worker = "Original Traceback" in message
        print(
            f"trainer: {message.strip().splitlines()[-1] if worker else message}", file=sys.stderr
        )
        return 1
    except OSError as error:
        print(f"trainer: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("trainer: interrupted before training: nothing was written", file=sys.stderr)
        return 130


def run(options: Options) -> int:
    """Exit status 0, or 128 plus the number of the signal that interrupted training."""
    architecture(options.arch)
    interrupt_on_sigterm()
    options.run.mkdir(parents=True, exist_ok=True)  # before the long work, in case it cannot be
    spec = ImageSpec()
    torch.manual_seed(options.seed)
    split = prepare_data(options, spec)
    network, weights = prepare_network(options, split, spec)
    recipe = recipe_for(options, pretrained=weights.pretrained, gpu=torch.cuda.is_available())
    cache = open_cache(options.cache, split, spec, say) if options.cache else None
    set_aside(options.run)
    log = Log(options.run / "log.jsonl")
    log.write("start", options=options, recipe=recipe, weights=weights, labels=split.labels)
    log.write("data", **data_figures(split))
    training = Training(
        split=split, recipe=recipe, spec=spec, options=options, weights=weights, cache=cache
    )
    interrupt = Interrupt()  # from here on there is something to finish
    best = train(network, training, log, interrupt)
    if best is None:
        print("trainer: interrupted before the first evaluation: no checkpoint", file=sys.stderr)
        return 128 + (interrupt.signal or 0)
    kept = finish(options.run)
    log.write(
        "end", interrupted=interrupt.signal is not None, test=brief(kept.test or kept.validation)
    )
    log.close()
    conclude(kept.test or kept.validation, options.run)
    if interrupt.signal is not None:
        print(f"interrupted: the checkpoint is that of epoch {kept.epoch}", file=sys.stderr)
        return 128 + interrupt.signal
    return 0


def prepare_data(options: Options, spec: ImageSpec) -> Split:
    """The split, with what is worth knowing about it told before anything is trained on it."""
    known = read_inspected(options.cache, spec) if options.cache else {}
    split = reviewed(load_split(options, spec, known), spec)
    if options.cache:
        write_inspected(options.cache, spec, known)
    describe(split, options.data)
    for text in split.warnings:
        say(f"WARNING: {text}")
    return split


def describe(split: Split, folder: Path) -> None:
    counts = f"{len(split.train)} train, {len(split.val)} validation, {len(split.test)} test images"
    print(f"{folder}: {len(split.labels)} classes, {counts}, fingerprint {split.fingerprint[:12]}")


def prepare_network(
    options: Options, split: Split, spec: ImageSpec
) -> tuple[PixelNetwork, Weights]:
    """The network, and where its weights come from. Raises WeightsUnavailable."""
    network = new_network(options.arch, len(split.labels), spec)
    try:
        return network, load_weights(network, options.arch, options.weights)
    except WeightsUnavailable as error:
        if options.without_weights == "stop":
            raise
        print(f"{FRAME}\n{error}\n\n{FALLBACK_WARNING}\n{FRAME}", file=sys.stderr, flush=True)
        source = "random (the ImageNet weights could not be had)"
        return network, Weights(pretrained=False, source=source)


def conclude(result: Evaluation, run: Path) -> None:
    low, high = result.interval
    print(
        f"accuracy {result.accuracy:.1%} on {result.images} held-out images at "
        f"{result.image_size} px (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {result.macro_f1:.3f}\n"
        f"checkpoint in {run}, report in {run / REPORT}"
    )


def parse_options(arguments: list[str] | None = None) -> Options:
    """Raises InvalidInput for a value out of its range."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tune a classifier on a folder of labelled images.",
    )
    add = parser.add_argument
    add(
        "--data",
        type=Path,
        required=True,
        help="folder of class folders, or of train/, val/, test/",
    )
    add(
        "--run",
        type=Path,
        default=Path("runs/products"),
        help="folder for checkpoint, log and report",
    )
    add("--arch", default="resnet50", help=f"one of {', '.join(ARCHITECTURES)}")
    add(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="start from torchvision's ImageNet weights, random ones, or a file of weights",
    )
    add(
        "--without-weights",
        choices=("stop", "scratch"),
        default="stop",
        help="if the ImageNet weights cannot be had: stop, or train from scratch and say so",
    )
    for name in ("epochs", "batch_size", "learning_rate"):
        low, high = RANGES[name]
        default = getattr(FINE_TUNE, name)
        add(
            f"--{name.replace('_', '-')}",
            type=type(default),
            help=f"{low:g} to {high:g} (default: the recipe's; {default:g} for fine-tuning)",
        )
    add(
        "--class-weights",
        choices=get_args(ClassWeights),
        help="weigh rare classes up in the loss; inverse fully, sqrt half of the way "
        "(default: the recipe's; none for all)",
    )
    add(
        "--sampler",
        choices=get_args(Sampler),
        help="an epoch shows each image once, or each class equally often "
        "(default: the recipe's; shuffled for all)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep training images there, resized, so that decoding is paid for once",
    )
    add(
        "--val-share",
        type=float,
        default=0.1,
        help="split off for validation where no val/ is given",
    )
    add(
        "--test-share",
        type=float,
        default=0.1,
        help="split off for testing where no test/ is given",
    )
    add(
        "--max-damaged-share",
        type=float,
        default=0.02,
        help="files that cannot be used are named and left out up to this share, then refused",
    )
    workers = min(MAX_DEFAULT_WORKERS, max(1, available_cores() - 1))
    add("--workers", type=int, default=workers, help="loader processes (default: %(default)s)")
    add("--seed", type=int, default=0)
    return Options(**vars(parser.parse_args(arguments)))


if __name__ == "__main__":
    raise SystemExit(main())
