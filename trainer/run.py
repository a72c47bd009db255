"""A training run from start to end: data, network, recipe, training, figures, report."""

import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer import abstaining, diagnosis
from trainer.architectures import architecture
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import Checkpoint, set_aside
from trainer.data import Split, load_split
from trainer.evaluate import brief
from trainer.finish import finish
from trainer.interrupt import Interrupt
from trainer.log import Log, say
from trainer.loop import Training, train
from trainer.metrics import read_metrics
from trainer.model import PixelNetwork, Weights, new_network
from trainer.recipe_page import augmentation_of
from trainer.recipes import (
    AUTO,
    Options,
    Recipe,
    against_band,
    named_recipe,
    recipe_for,
    size_class,
)
from trainer.report import REPORT
from trainer.review import data_figures, reviewed
from trainer.weights import RANDOM, Start, WeightsUnavailable, check_weights, fill, read_weights

FRAME = "=" * 78
FALLBACK_WARNING = (
    "WARNING: training from RANDOM weights instead, {recipe}.\n"
    "It will do for the drawn sample catalogue; it will NOT do for photographs.\n"
    "The checkpoint and the report say so."
)


def run(options: Options) -> int:
    """Exit status 0, or 128 plus the number of the signal that interrupted training."""
    check(options)
    interrupt_on_sigterm()
    options.run.mkdir(parents=True, exist_ok=True)  # before the long work, in case it cannot be
    torch.manual_seed(options.seed)
    split = prepare_data(options, ImageSpec())
    network, recipe, start = prepare_network(options, split)
    spec, weights = start.spec, start.weights
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
    conclude(kept, options.run)
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


def check(options: Options) -> None:
    """What can be known before the data is scanned. Raises InvalidInput or NotFound."""
    architecture(options.arch)
    check_weights(options.arch, options.weights)
    with torch.device("meta"):
        new_network(options.arch, 2, ImageSpec())  # its package may be missing


def prepare_network(options: Options, split: Split) -> tuple[PixelNetwork, Recipe, Start]:
    """The network, how it will be trained, and what it starts from. Raises WeightsUnavailable."""
    kind = architecture(options.arch)
    images = len(split.train) + len(split.held_out)
    start = starting_point(options, images)
    recipe = recipe_for(
        options,
        kind,
        images=images,
        pretrained=start.weights.pretrained,
        gpu=torch.cuda.is_available(),
    )
    describe_recipe(options, recipe, start, images)
    network = new_network(options.arch, len(split.labels), start.spec)
    fill(network, kind, start)
    return network, recipe, start


def starting_point(options: Options, images: int) -> Start:
    preferred = named_recipe(options, images).imagenet
    try:
        return read_weights(options.arch, options.weights, preferred, options.weights_sha256)
    except WeightsUnavailable as error:
        if options.without_weights == "stop":
            raise
        recipe = "with a recipe made for that"
        if options.recipe != AUTO:
            recipe = f"and recipe {options.recipe} is not made for that"
        warning = FALLBACK_WARNING.format(recipe=recipe)
        print(f"{FRAME}\n{error}\n\n{warning}\n{FRAME}", file=sys.stderr, flush=True)
        source = "random (the ImageNet weights could not be had)"
        return RANDOM._replace(weights=Weights(pretrained=False, source=source))


def describe_recipe(options: Options, recipe: Recipe, start: Start, images: int) -> None:
    print(
        f"recipe {recipe.name}: epochs {recipe.epochs}, batch size {recipe.batch_size}, learning "
        f"rate {recipe.learning_rate:g} (head x{recipe.head_learning_rate_factor:g}), "
        f"augmentation {augmentation_of(recipe)}; weights: {start.weights.source}"
    )
    if recipe.frozen_batchnorm:
        print("BatchNorm's statistics stay those of the weights: batches or data are too small")
    size = size_class(images)
    if options.recipe == AUTO and start.weights.pretrained and size.hint:
        print(f"hint, for {images} images: {size.hint}")
    sys.stdout.flush()


def conclude(kept: Checkpoint, run: Path) -> None:
    result = kept.test or kept.validation
    low, high = result.interval
    print(
        f"accuracy {result.accuracy:.1%} on {result.images} held-out images at "
        f"{result.image_size} px (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {result.macro_f1:.3f}"
    )
    if sentence := against_band(kept.recipe, result.accuracy):
        print(sentence)
    for line in findings_of(run):
        print(line)
    print(f"checkpoint in {run}, report in {run / REPORT}")


def findings_of(run: Path) -> Iterator[str]:
    """What the metrics say besides accuracy."""
    metrics = read_metrics(run)
    calibration = metrics.calibration
    yield (
        f"calibration error {calibration.after.error:.1%}, before temperature "
        f"{calibration.temperature:.2f} {calibration.before.error:.1%}"
    )
    if metrics.abstaining is not None:
        yield abstaining.told(metrics.abstaining)
    for finding in metrics.diagnosis:
        yield diagnosis.told(finding)
