"""A training run from start to end: data, network, recipe, training, figures, report."""

import copy
import sys
import time
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer.architectures import architecture
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import Checkpoint, save_checkpoint, set_aside
from trainer.command_line import command_for
from trainer.data import Split, load_split
from trainer.evaluate import brief
from trainer.features import features_of
from trainer.finish import finish
from trainer.interrupt import Interrupt
from trainer.log import Log, say
from trainer.loop import Moment, Training, record_of, train
from trainer.model import PixelNetwork, Weights, new_network
from trainer.probe import Floor, Probe, fit_probe, head_weights
from trainer.recipe_page import augmentation_of
from trainer.recipes import (
    AUTO,
    LAST_STAGE,
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
    training = Training(
        split=split, recipe=recipe, spec=start.spec, options=options, weights=start.weights
    )
    # Before anything is written: whoever interrupts it still has the earlier run in its place.
    probe, training = fit_head(network, training) if recipe.floor else (None, training)
    if options.cache and recipe.epochs:
        training = replace(training, cache=open_cache(options.cache, split, start.spec, say))
    interrupt = Interrupt()  # from here on there is something to finish
    set_aside(options.run)
    log = open_log(training)
    best = keep_head(network, training, probe) if probe else None
    if recipe.epochs and interrupt.signal is None:
        best = train(network, training, log, interrupt, best)
    if best is None:
        print("trainer: interrupted before the first evaluation: no checkpoint", file=sys.stderr)
        return 128 + (interrupt.signal or 0)
    kept = finish(options.run)
    log.write(
        "end", interrupted=interrupt.signal is not None, test=brief(kept.test or kept.validation)
    )
    log.close()
    conclude(kept, options.run)
    return told_how_to_go_on(kept, options, interrupt)


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
    preferred = named_recipe(options, images, gpu=torch.cuda.is_available()).imagenet
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


def fit_head(network: PixelNetwork, training: Training) -> tuple[Probe, Training]:
    """A head on the frozen backbone's features, what it reaches told, and the run that knows it.

    Raises InvalidInput or DamagedFile: see `features_of`.
    """
    split, recipe, spec = training.split, training.recipe, training.spec
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)
    known = features_of(network, split, split.train + split.val, spec, training.options.cache)
    train, val = known.parted(len(split.train))
    weight = head_weights(recipe, split.train_counts)
    probe = fit_probe(train, val, split.labels, weight, spec.crop, device)
    floor = probe.floor(time.monotonic() - started)
    describe_floor(floor, recipe)
    return probe, replace(training, floor=floor)


def describe_floor(floor: Floor, recipe: Recipe) -> None:
    low, high = floor.interval
    aim = "; the floor that training must beat" if recipe.epochs else ""
    say(
        f"a head fitted on the frozen backbone's features: validation accuracy "
        f"{floor.accuracy:.1%} on {floor.images} images (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {floor.macro_f1:.3f}, in {floor.seconds:.0f} s{aim}"
    )


def open_log(training: Training) -> Log:
    """With what is known before training in it."""
    options, split = training.options, training.split
    log = Log(options.run / "log.jsonl")
    log.write(
        "start",
        options=options,
        recipe=training.recipe,
        weights=training.weights,
        labels=split.labels,
    )
    log.write("data", **data_figures(split))
    if training.floor is not None:
        log.write("floor", **msgspec.structs.asdict(training.floor))
    return log


def keep_head(network: PixelNetwork, training: Training, probe: Probe) -> Checkpoint:
    """Writes the fitted head on the backbone as it is: the checkpoint that training must beat.

    The network keeps that head where the recipe starts from it, else its random one.
    """
    random = copy.deepcopy(network.head.state_dict())
    network.head.load_state_dict({"weight": probe.weight, "bias": probe.bias})
    before = Moment(epoch=0, step=0, size=training.spec.crop)
    record = record_of(training, before, probe.validation)
    kept = save_checkpoint(training.options.run, record, network, training.split)
    if not training.recipe.fitted_head:
        network.head.load_state_dict(random)
    return kept


def describe_recipe(options: Options, recipe: Recipe, start: Start, images: int) -> None:
    if not recipe.epochs:
        print(
            f"recipe {recipe.name}: features computed once, a head fitted on them, no training; "
            f"weights: {start.weights.source}"
        )
        sys.stdout.flush()
        return
    print(
        f"recipe {recipe.name}: epochs {recipe.epochs}, batch size {recipe.batch_size}, learning "
        f"rate {recipe.learning_rate:g} (head x{recipe.head_learning_rate_factor:g}), "
        f"augmentation {augmentation_of(recipe)}; weights: {start.weights.source}"
    )
    if recipe.frozen_batchnorm:
        print("BatchNorm's statistics stay those of the weights: batches or data are too small")
    if options.recipe == AUTO and start.weights.pretrained and not torch.cuda.is_available():
        print(
            f"WARNING: without a GPU, training the whole network is slow: without "
            f"{', '.join(options.about_loop)} a head is fitted instead, in seconds to minutes"
        )
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
    if sentence := against_floor(kept):
        print(sentence)
    if sentence := against_band(kept.recipe, result.accuracy):
        print(sentence)
    print(f"checkpoint in {run}, report in {run / REPORT}")


def against_floor(kept: Checkpoint) -> str | None:
    """Whether training was worth it, if there was a floor to beat."""
    if kept.floor is None or not kept.recipe.epochs:
        return None
    if kept.epoch == 0:
        return (
            "training did not get above the floor: kept is the head fitted on the frozen backbone, "
            f"validation accuracy {kept.floor.accuracy:.1%}, macro-F1 {kept.floor.macro_f1:.3f}"
        )
    return (
        f"training got above the floor: validation accuracy {kept.validation.accuracy:.1%} against "
        f"{kept.floor.accuracy:.1%}, macro-F1 {kept.validation.macro_f1:.3f} against "
        f"{kept.floor.macro_f1:.3f}"
    )


def told_how_to_go_on(kept: Checkpoint, options: Options, interrupt: Interrupt) -> int:
    """The exit status of the run."""
    if interrupt.signal is not None:
        place = f"that of epoch {kept.epoch}" if kept.epoch else "the fitted head, without training"
        print(f"interrupted: the checkpoint is {place}", file=sys.stderr)
        return 128 + interrupt.signal
    if not kept.recipe.epochs:
        further = command_for(replace(options, recipe=LAST_STAGE.name))
        print(f"to train the backbone's last stage too, from this head:\n  {further}")
    return 0
