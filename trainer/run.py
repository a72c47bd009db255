"""A training run from start to end: data, network, recipe, training, figures, report."""

import copy
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import msgspec
import torch
from msgspec.structs import replace

from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from packshot.terminate import interrupt_on_sigterm
from trainer.architectures import architecture
from trainer.cache import open_cache, read_inspected, write_inspected
from trainer.checkpoint import RECORD, Checkpoint, read_record, save_checkpoint, set_aside
from trainer.command_line import command_for
from trainer.course import Course, Moment, TimeLimit
from trainer.data import Split, load_split
from trainer.evaluate import brief
from trainer.features import features_of
from trainer.finish import finish
from trainer.hardware import Hardware, hardware_for
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper, record_of
from trainer.learner import Learner
from trainer.log import LOG, Log, say
from trainer.loop import train
from trainer.model import PixelNetwork, Weights, new_network
from trainer.probe import Floor, Probe, fit_probe, head_weights
from trainer.processes import Processes, leave
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
    # Before anything is written: whoever interrupts it still has the earlier run in its place.
    probe, training = (None, training) if unfinished else fit_head(network, training)
    if not training.recipe.epochs:
        return end_with_head(network, training, probe)
    if unfinished is None:
        plan = new_plan(training, network, started)
    else:
        plan = resumed_plan(training, unfinished.progress.steps, started)
    schedule, learner = training.schedule(plan.steps), training.learner(network, plan.steps)
    course, best = begin(training, learner, unfinished, plan.limit)
    log = open_log(training, course) if hardware.processes.first else None
    interrupt = Interrupt()  # from here on there is something to finish
    if probe is not None:
        best = keep_head(network, training, probe)
    elif best is not None:
        training = replace(training, floor=best.floor)  # of the run that is gone on with
    keeper = Keeper(training, log, best)
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
    if folder is not None and recipe.epochs:
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


def fit_head(network: PixelNetwork, training: Training) -> tuple[Probe | None, Training]:
    """A head on the frozen backbone's features, what it reaches told, and the run that knows it.

    The first of several processes fits it. The network takes it where the recipe starts from it.
    Raises InvalidInput or DamagedFile: see `features_of`.
    """
    recipe, processes = training.recipe, training.hardware.processes
    if not recipe.floor:
        return None, training
    network.to(training.hardware.device, memory_format=torch.channels_last)
    found: list[tuple[Probe, Floor]] = []

    def fit() -> bytes:
        found.append(measure_floor(network, training))
        return b"done"

    processes.from_first(fit)
    if not found:
        if recipe.fitted_head:
            processes.same_as_first(network.head.parameters())
        return None, training
    ((probe, floor),) = found
    describe_floor(floor, recipe)
    if recipe.fitted_head:
        put_head(network, probe)
        processes.same_as_first(network.head.parameters())
    return probe, replace(training, floor=floor)


def measure_floor(network: PixelNetwork, training: Training) -> tuple[Probe, Floor]:
    split, spec = training.split, training.spec
    started = time.monotonic()
    known = features_of(network, split, split.train + split.val, spec, training.options.cache)
    train, val = known.parted(len(split.train))
    weight = head_weights(training.recipe, split.train_counts)
    device = training.hardware.device
    probe = fit_probe(train, val, split.labels, weight, spec.crop, device)
    return probe, probe.floor(time.monotonic() - started)


def put_head(network: PixelNetwork, probe: Probe) -> None:
    network.head.load_state_dict({"weight": probe.weight, "bias": probe.bias})


def describe_floor(floor: Floor, recipe: Recipe) -> None:
    low, high = floor.interval
    aim = "; the floor that training must beat" if recipe.epochs else ""
    say(
        f"a head fitted on the frozen backbone's features: validation accuracy "
        f"{floor.accuracy:.1%} on {floor.images} images (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {floor.macro_f1:.3f}, in {floor.seconds:.0f} s{aim}"
    )


def keep_head(network: PixelNetwork, training: Training, probe: Probe) -> Checkpoint:
    """Writes the fitted head on the backbone as it is: the checkpoint that training must beat.

    The network keeps the head that it has.
    """
    own = copy.deepcopy(network.head.state_dict())
    put_head(network, probe)
    before = Moment(epoch=0, step=0, size=training.spec.crop)
    record = record_of(training, before, probe.validation)
    kept = save_checkpoint(training.options.run, record, network, training.split)
    network.head.load_state_dict(own)
    return kept


def end_with_head(network: PixelNetwork, training: Training, probe: Probe | None) -> int:
    """A run that ends here: the head is the result. Returns the exit status."""
    if probe is None:
        return 0  # the first process ends it
    log = open_log(training, Course())
    interrupt = Interrupt()  # from here on there is something to finish
    return end(training.options, keep_head(network, training, probe), log, interrupt)


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
    if training.floor is not None:
        log.write("floor", **msgspec.structs.asdict(training.floor))
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
        place = f"that of epoch {kept.epoch}" if kept.epoch else "the fitted head, without training"
        print(
            f"interrupted: the checkpoint is {place}; the same command with --resume goes on",
            file=sys.stderr,
        )
        return 128 + interrupt.signal
    remove_state(options.run)
    if not kept.recipe.epochs:
        further = command_for(replace(options, recipe=LAST_STAGE.name, resume=False))
        print(f"to train the backbone's last stage too, from this head:\n  {further}")
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
