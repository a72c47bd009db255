"""The command line of the trainer, parsed once into typed options."""

import argparse
import shlex
from pathlib import Path
from typing import get_args

from packshot.cores import available_cores
from packshot.image import Fit
from packshot.resizing import Resizer
from trainer.recipes import (
    ARCHITECTURE_NAMES,
    AUTO,
    CHOSEN,
    MANUAL,
    RANGES,
    RECIPES,
    Augmentation,
    ClassWeights,
    Options,
    Precision,
    Sampler,
)

MAX_DEFAULT_WORKERS = 16


def parse_options(arguments: list[str] | None = None) -> Options:
    """Raises InvalidInput for a value out of its range."""
    parser = argparse.ArgumentParser(
        prog="python -m trainer",
        description="Fine-tune a classifier on a folder of labelled images.",
    )
    _add_data(parser)
    _add_start(parser)
    _add_recipe(parser)
    _add_course(parser)
    parser.add_argument(
        "--target-precision",
        type=float,
        metavar="P",
        help="abstain from answers that are less sure than it takes for a share P of the others to "
        "be right (default: answer always)",
    )
    workers = min(MAX_DEFAULT_WORKERS, max(1, available_cores() - 1))
    parser.add_argument(
        "--workers", type=int, default=workers, help="loader processes (default: %(default)s)"
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of splits, order, views and random weights (default: %(default)s)",
    )
    parser.add_argument(
        "--yes", action="store_true", help="train even if the steps are too few to learn anything"
    )
    return Options(**vars(parser.parse_args(arguments)))


def command_for(options: Options) -> str:
    """The command that asks for these options: those that are not the defaults, for a shell."""
    usual = parse_options(["--data", str(options.data)])
    words = ["python", "-m", "trainer", "--data", str(options.data)]
    for name in options.__struct_fields__:
        value = getattr(options, name)
        if value != getattr(usual, name):
            option = f"--{'' if value is not False else 'no-'}{name.replace('_', '-')}"
            words += [option] if isinstance(value, bool) else [option, str(value)]
    return shlex.join(words)


def _add_data(parser: argparse.ArgumentParser) -> None:
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
        help="folder for checkpoint, log and report (default: %(default)s)",
    )
    add(
        "--cache",
        type=Path,
        metavar="DIR",
        help="keep training images there, resized, so that decoding is paid for once",
    )
    add(
        "--fit",
        choices=get_args(Fit),
        help="what the network sees of a long image: its centre, or all of it on a white square "
        "(default: crop, or as the earlier run of --weights)",
    )
    add(
        "--draft-short-side",
        type=int,
        choices=(256, 512),
        help="JPEGs are decoded at 1/2, 1/4 or 1/8 scale while the short side keeps so many "
        "pixels: 256 makes decoding photographs of 600 to 1000 pixels cheaper, by pixels further "
        "from torchvision's (default: 512, or as the earlier run of --weights)",
    )
    add(
        "--resizer",
        choices=get_args(Resizer),
        help="in training and server alike, a grey level apart, rarely two: fast_image_resize "
        "takes an eighth of pillow's time (default: that, or as the run that goes on or the "
        "earlier one of --weights; without its package, cykooz-resizer, pillow)",
    )
    add(
        "--val-share",
        type=float,
        default=0.1,
        help="split off for validation where no val/ is given (default: %(default)s)",
    )
    add(
        "--test-share",
        type=float,
        default=0.1,
        help="split off for testing where no test/ is given (default: %(default)s)",
    )
    add(
        "--max-damaged-share",
        type=float,
        default=0.02,
        help="files that cannot be used are named and left out up to this share, then refused "
        "(default: %(default)s)",
    )


def _add_start(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--arch",
        default="resnet50",
        help=f"one of {', '.join(ARCHITECTURE_NAMES)} (default: %(default)s)",
    )
    add(
        "--weights",
        default="imagenet",
        metavar="imagenet|none|PATH",
        help="start from ImageNet weights (imagenet-v1: those by name), random ones, a "
        ".safetensors or .pth file, or an earlier run's folder (default: %(default)s)",
    )
    add("--weights-sha256", help="the hash that the file of --weights must have")
    add(
        "--without-weights",
        choices=("stop", "scratch"),
        default="stop",
        help="if the ImageNet weights cannot be had: stop, or train from scratch and say so "
        "(default: %(default)s)",
    )


def _add_recipe(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--recipe",
        default=AUTO,
        help=f"{AUTO} (by the number of images), or one of {', '.join(RECIPES)}; "
        "`python -m trainer recipes` explains them (default: %(default)s)",
    )
    for name in CHOSEN:
        low, high = RANGES[name]
        default = getattr(MANUAL, name)
        add(
            f"--{name.replace('_', '-')}",
            type=type(default),
            help=f"{low:g} to {high:g} (default: the recipe's; {default:g} for {MANUAL.name})",
        )
    add(
        "--augmentation",
        choices=get_args(Augmentation),
        help="of training images (default: the recipe's)",
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
        "--no-flip",
        dest="flip",
        action="store_const",
        const=False,
        help="for images that mean something else left to right, such as print",
    )


def _add_course(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--max-minutes",
        type=float,
        help="fit the schedule, report included, into so many minutes",
    )
    add(
        "--resume",
        action="store_true",
        help="go on with the unfinished run in --run, if there is one; it ends as if it had not "
        "been interrupted",
    )
    add(
        "--save-minutes",
        type=float,
        default=5.0,
        help="from one saved state to the next, for --resume; 0: after every step "
        "(default: %(default)g)",
    )
    add(
        "--precision",
        choices=get_args(Precision),
        default="auto",
        help="of convolutions and products; auto: bf16 on a GPU that has it, else fp16, and fp32 "
        "on a CPU (default: %(default)s)",
    )
    add(
        "--compile",
        action="store_true",
        help="torch.compile: faster steps on a GPU after a minute or two; needs a C++ compiler",
    )
    add(
        "--deterministic",
        action="store_true",
        help="the same weights from the same seed on a GPU too, a little slower; a CPU gives them "
        "anyway",
    )


def parse_fetching(arguments: list[str]) -> argparse.Namespace:
    """Of `python -m trainer weights`: arch, weights, into."""
    parser = argparse.ArgumentParser(prog="python -m trainer weights")
    verbs = parser.add_subparsers(metavar="fetch", required=True)
    fetching = verbs.add_parser(
        "fetch", help="download ImageNet weights, for a machine without a network"
    )
    add = fetching.add_argument
    known = ", ".join(ARCHITECTURE_NAMES)
    add(
        "--arch",
        nargs="+",
        default=["resnet50"],
        help=f"one or more of {known}; or all (default: resnet50)",
    )
    add(
        "--weights",
        default="imagenet",
        help="imagenet (the newest) or one by name: imagenet-v1 (default: %(default)s)",
    )
    add("--into", type=Path, help="folder to download into (default: where the trainer looks)")
    return parser.parse_args(arguments)
