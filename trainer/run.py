"""A training run from start to end: data, network, recipe, training, figures, report."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from msgspec.structs import asdict, replace

from packshot.errors import InvalidInput
from packshot.terminate import interrupt_on_sigterm
from trainer.checkpoint import RECORD, Checkpoint, read_record
from trainer.command_line import command_for
from trainer.conclude import conclude
from trainer.course import Course
from trainer.earlier import set_aside
from trainer.evaluate import brief, rank
from trainer.finish import finish
from trainer.hardware import Hardware, hardware_for
from trainer.head import fit_head, keep_head
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.learner import Learner
from trainer.lock import locked
from trainer.log import LOG, Log, say
from trainer.loop import train
from trainer.model import PixelNetwork
from trainer.prepare import check, prepare
from trainer.processes import Processes, leave
from trainer.recipes import LAST_STAGE, Options
from trainer.review import data_figures
from trainer.state import State, check_identity, identity_of, read_state, remove_state
from trainer.timing import Plan, new_plan, resumed_plan
from trainer.training import Training

TO_GO_ON = "the same command with --resume (make train TRAIN=--resume) goes on"


def run(options: Options) -> int:
    """Exit status 0, or 128 plus the number of the signal that interrupted training."""
    started = time.monotonic()
    check(options)
    interrupt_on_sigterm()
    hardware = hardware_for(options, os.environ)
    options.run.mkdir(parents=True, exist_ok=True)  # before the long work, in case it cannot be
    alone = locked(options.run) if hardware.processes.first else nullcontext()
    try:
        with _only_the_first_talks(hardware.processes), alone:
            return _run(options, hardware, started)
    except torch.OutOfMemoryError as error:
        raise InvalidInput(
            f"out of GPU memory: {error}; set a smaller --batch-size, or choose a smaller --arch"
        ) from error


def _run(options: Options, hardware: Hardware, started: float) -> int:
    torch.manual_seed(options.seed)
    training, network = prepare(options, hardware)
    unfinished = read_unfinished(training) if options.resume else None
    if unfinished is None and options.resume and is_finished(training):
        print(f"--resume: the run in {options.run} has finished: there is nothing left to do")
        return 0
    if unfinished is None:
        return begin(training, network, started)
    return go_on(training, network, unfinished, started)


def begin(training: Training, network: PixelNetwork, started: float) -> int:
    """A run from its first step on. Returns the exit status."""
    # Before anything is written: whoever interrupts it still has the earlier run in its place.
    probe, training = fit_head(network, training)
    plan = new_plan(training, network, started) if training.recipe.epochs else None
    interrupt = Interrupt()  # from here on there is something to finish
    log = new_log(training)
    best = None if probe is None else keep_head(network, training, probe)
    if plan is None or not plan.steps:
        leave(training.hardware.processes)
        return end(training.options, best, log)
    learner = training.learner(network, plan.steps)
    keeper = Keeper(training, log, best, None if best is None else rank(best.validation))
    return train_to_end(training, plan, learner, Course(limit=plan.limit), keeper, interrupt)


def go_on(training: Training, network: PixelNetwork, unfinished: State, started: float) -> int:
    """The rest of an unfinished run. Returns the exit status."""
    progress, run = unfinished.progress, training.options.run
    plan = resumed_plan(training, network, progress.steps, started)
    learner = training.learner(network, plan.steps)
    learner.restore(unfinished.tensors, progress.scalars)
    unfinished.tensors.clear()  # four times the weights, which nobody needs any more
    print(f"going on after step {progress.step} of {progress.steps}")
    best = read_record(run) if progress.standing is not None else None
    if best is not None:
        check_identity(identity_of(best), training.identity, run)
        training = replace(training, floor=best.floor)
    log = log_of(training, progress.step)
    course = Course(progress.step, progress.losses, progress.patience, plan.limit)
    keeper = Keeper(training, log, best, progress.standing)
    return train_to_end(training, plan, learner, course, keeper, Interrupt())


def train_to_end(
    training: Training,
    plan: Plan,
    learner: Learner,
    course: Course,
    keeper: Keeper,
    interrupt: Interrupt,
) -> int:
    schedule = training.schedule(plan.steps)
    signal = train(training, schedule, learner, keeper, course, interrupt)
    leave(training.hardware.processes)
    epoch = schedule.epoch(course.step) if signal else None
    return end(training.options, keeper.best, keeper.log, signal, epoch)


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
    if not (run / RECORD).exists() or not (record := read_record(run)).trained_to_the_end:
        return False
    check_identity(identity_of(record), training.identity, run)
    return True


def new_log(training: Training) -> Log | None:
    """In the first process, with an earlier run moved out of the way."""
    options = training.options
    if not training.hardware.processes.first:
        return None
    if moved := set_aside(options.run):
        say(moved)
    log = Log(options.run / LOG)
    log.write(
        "start",
        options=options,
        recipe=training.recipe,
        weights=training.weights,
        labels=training.split.labels,
    )
    log.write("data", **data_figures(training.split))
    if training.floor is not None:
        log.write("floor", **asdict(training.floor))
    return log


def log_of(training: Training, step: int) -> Log | None:
    """The unfinished run's, in the first process, to be gone on with."""
    if not training.hardware.processes.first:
        return None
    log = Log(training.options.run / LOG, after_step=step)
    log.write("resume", step=step, options=training.options)
    return log


def end(
    options: Options,
    best: Checkpoint | None,
    log: Log | None,
    signal: int = 0,
    interrupted_at: int | None = None,
) -> int:
    """Measures and reports the checkpoint, in the first process; returns the exit status.

    `signal`: of whoever interrupted training, 0 for nobody; `interrupted_at`: in which epoch.
    """
    status = 128 + signal if signal else 0
    if log is None:
        return status
    if best is None:
        print(
            f"trainer: interrupted before the first evaluation: no checkpoint yet; {TO_GO_ON}",
            file=sys.stderr,
        )
        return status
    kept = finish(options.run, interrupted_at=interrupted_at)
    log.write("end", interrupted=signal != 0, test=brief(kept.test or kept.validation))
    log.close()
    conclude(kept, options.run)
    if signal:
        place = f"that of epoch {kept.epoch}" if kept.epoch else "the fitted head, without training"
        print(
            f"interrupted: the checkpoint is {place}; {TO_GO_ON}",
            file=sys.stderr,
        )
        return status
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
