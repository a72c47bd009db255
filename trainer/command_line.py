"""The command line of the trainer, parsed once into typed options."""

import argparse
from pathlib import Path

from packshot.cores import available_cores
from trainer.recipes import ARCHITECTURES, FINE_TUNE, RANGES, Options

MAX_DEFAULT_WORKERS = 16


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
