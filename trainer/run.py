"""A training run from start to end: data, network, recipe, training, figures, report."""

import sys
from pathlib import Path

import torch

from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer.checkpoint import set_aside
from trainer.data import Split, load_split
from trainer.evaluate import Evaluation
from trainer.loop import Interrupt, Log, Training, brief, finish, train
from trainer.model import (
    PixelNetwork,
    Weights,
    WeightsUnavailable,
    architecture,
    load_weights,
    new_network,
)
from trainer.recipes import Options, recipe_for
from trainer.report import REPORT

FRAME = "=" * 78
FALLBACK_WARNING = (
    "WARNING: training from RANDOM weights instead, with a recipe made for that.\n"
    "It will do for the drawn sample catalogue; it will NOT do for photographs.\n"
    "The checkpoint and the report say so."
)


def run(options: Options) -> int:
    """Exit status 0, or 128 plus the number of the signal that interrupted training."""
    architecture(options.arch)
    interrupt_on_sigterm()
    options.run.mkdir(parents=True, exist_ok=True)  # before the long work, in case it cannot be
    spec = ImageSpec()
    torch.manual_seed(options.seed)
    split = load_split(options, spec)
    describe(split, options.data)
    network, weights = prepare_network(options, split, spec)
    recipe = recipe_for(options, pretrained=weights.pretrained, gpu=torch.cuda.is_available())
    set_aside(options.run)
    log = Log(options.run / "log.jsonl")
    log.write("start", options=options, recipe=recipe, weights=weights, labels=split.labels)
    training = Training(split=split, recipe=recipe, spec=spec, options=options, weights=weights)
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
