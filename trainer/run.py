"""A training run from start to end: data, network, recipe, training, figures, report."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import msgspec
import torch

from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer.architectures import architecture
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import RECORD, Checkpoint, read_record, set_aside
from trainer.course import Course, TimeLimit
from trainer.data import Split, load_split
from trainer.evaluate import brief
from trainer.finish import finish
from trainer.hardware import Hardware, hardware_for
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.learner import Learner
from trainer.log import LOG, Log, say
from trainer.loop import train
from trainer.model import PixelNetwork, Weights, new_network
from trainer.processes import Processes, leave
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
from trainer.state import State, check_identity, identity_of, read_state, remove_state
from trainer.timing import new_plan, resumed_plan
from trainer.training import Training
from trainer.weights import RANDOM, Start, WeightsUnavailable, check_weights, fill, read_weights

FRAME = "=" * 78
FALLBACK_WARNING = (
    "WARNING: training from RANDOM weights instead, {recipe}.\n"
    "It will do for the drawn sample catalogue; it will NOT do for photographs.\n"
    "The checkpoint and the report say so."
)


def run(options: Options) -> int:
    """Exit status 0, or 128 plus the number of the signal that interrupted training."""
    started = time.monotonic()
    check(options)
    interrupt_on_sigterm()
    hardware = hardware_for(options, os.environ)
    try:
        with _only_the_first_talks(hardware.processes):
            return _run(options, hardware, started)
    finally:
        leave(hardware.processes)


def _run(options: Options, hardware: Hardware, started: float) -> int:
    options.run.mkdir(parents=True, exist_ok=True)  # before the long work, in case it cannot be
    torch.manual_seed(options.seed)
    training, network = prepare(options, hardware)
    unfinished = read_unfinished(training) if options.resume else None
    if unfinished is None and options.resume and is_finished(training):
        print(f"--resume: the run in {options.run} has finished: there is nothing left to do")
        return 0
    if unfinished is None:
        plan = new_plan(training, network, started)
    else:
        plan = resumed_plan(training, unfinished.progress.steps, started)
    schedule, learner = training.schedule(plan.steps), training.learner(network, plan.steps)
    course, best = begin(training, learner, unfinished, plan.limit)
    log = open_log(training, course) if hardware.processes.first else None
    keeper = Keeper(training, log, best)
    interrupt = Interrupt()  # from here on there is something to finish
    train(training, schedule, learner, keeper, course, interrupt)
    if log is None:
        return 0 if interrupt.signal is None else 128 + interrupt.signal
    return end(options, keeper.best, log, interrupt)


def prepare(options: Options, hardware: Hardware) -> tuple[Training, PixelNetwork]:
    """Data, weights, recipe and cache; the first of several processes goes ahead."""
    processes = hardware.processes
    content = processes.from_first(lambda: msgspec.json.encode(prepare_data(options, ImageSpec())))
    split = msgspec.json.decode(content, type=Split)
    network, recipe, start = prepare_network(options, hardware, split)
    cache, folder = None, options.cache
    if folder is not None:
        cache = processes.in_turn(lambda: open_cache(folder, split, start.spec, say))
    training = Training(
        split=split,
        recipe=recipe,
        spec=start.spec,
        options=options,
        weights=start.weights,
        hardware=hardware,
        cache=cache,
    )
    return training, network


def read_unfinished(training: Training) -> State | None:
    """Raises InvalidInput if it is not this run that was left unfinished, or DamagedFile."""
    run = training.options.run
    state = read_state(run)
    if state is None:
        print(f"--resume: there is no unfinished run in {run}")
    else:
        check_identity(state.progress.identity, training.identity, run)
    return state


def is_finished(training: Training) -> bool:
    """Raises InvalidInput if another run has finished there."""
    run = training.options.run
    if not (run / RECORD).exists() or not (record := read_record(run)).finished:
        return False
    check_identity(identity_of(record), training.identity, run)
    return True


def begin(
    training: Training, learner: Learner, unfinished: State | None, limit: TimeLimit
) -> tuple[Course, Checkpoint | None]:
    """At the start, or where the unfinished run stood, with its best checkpoint."""
    if unfinished is None:
        return Course(limit=limit), None
    progress, run = unfinished.progress, training.options.run
    learner.restore(unfinished.tensors, progress.scalars)
    print(f"going on after step {progress.step} of {progress.steps}")
    best = read_record(run) if (run / RECORD).exists() else None
    return Course(progress.step, progress.losses, progress.patience, limit), best


def open_log(training: Training, course: Course) -> Log:
    """A new one, with an earlier run moved out of the way; or on with the unfinished run's."""
    options, path = training.options, training.options.run / LOG
    if course.step:
        log = Log(path, after_step=course.step)
        log.write("resume", step=course.step)
        return log
    set_aside(options.run)
    log = Log(path)
    log.write(
        "start",
        options=options,
        recipe=training.recipe,
        weights=training.weights,
        labels=training.split.labels,
    )
    log.write("data", **data_figures(training.split))
    return log


def end(options: Options, best: Checkpoint | None, log: Log, interrupt: Interrupt) -> int:
    """Measures and reports the checkpoint; returns the exit status."""
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
        print(
            f"interrupted: the checkpoint is that of epoch {kept.epoch}; the same command with "
            "--resume goes on",
            file=sys.stderr,
        )
        return 128 + interrupt.signal
    remove_state(options.run)
    return 0


@contextmanager
def _only_the_first_talks(processes: Processes) -> Iterator[None]:
    """Errors of the others are still told: they are, once they have left here."""
    if processes.first:
        yield
        return
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


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


def prepare_network(
    options: Options, hardware: Hardware, split: Split
) -> tuple[PixelNetwork, Recipe, Start]:
    """The network, how it will be trained, and what it starts from. Raises WeightsUnavailable."""
    kind = architecture(options.arch)
    images = len(split.examples)
    start = hardware.processes.in_turn(lambda: starting_point(options, images))
    recipe = recipe_for(
        options, kind, images=images, pretrained=start.weights.pretrained, gpu=hardware.gpu
    )
    check_shares(recipe, hardware)
    describe_recipe(options, recipe, start, images)
    network = new_network(options.arch, len(split.labels), start.spec)
    fill(network, kind, start)
    return network, recipe, start


def check_shares(recipe: Recipe, hardware: Hardware) -> None:
    """Raises InvalidInput if a batch cannot be shared out evenly."""
    count = hardware.processes.count
    if recipe.batch_size % count:
        raise InvalidInput(
            f"--batch-size is {recipe.batch_size}, of all processes together: it must be a multiple"
            f" of their number, {count}"
        )


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
    print(f"checkpoint in {run}, report in {run / REPORT}")
