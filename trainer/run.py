"""A training run from start to end: data, network, recipe, training, figures, report."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import torch
from msgspec.structs import asdict, replace

from packshot.terminate import interrupt_on_sigterm
from trainer.checkpoint import RECORD, Checkpoint, read_record, set_aside
from trainer.command_line import command_for
from trainer.conclude import conclude
from trainer.course import Course
from trainer.evaluate import brief
from trainer.finish import finish
from trainer.hardware import Hardware, hardware_for
from trainer.head import fit_head, keep_head
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.learner import Learner
from trainer.log import LOG, Log
from trainer.loop import train
from trainer.model import PixelNetwork
from trainer.prepare import check, prepare
from trainer.probe import Probe
from trainer.processes import Processes, leave
from trainer.recipes import LAST_STAGE, Options
from trainer.review import data_figures
from trainer.state import State, check_identity, identity_of, read_state, remove_state
from trainer.timing import Plan, new_plan, resumed_plan
from trainer.training import Training


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
        return begin(training, network, started)
    return go_on(training, network, unfinished, started)


def begin(training: Training, network: PixelNetwork, started: float) -> int:
    """A run from its first step on. Returns the exit status."""
    # Before anything is written: whoever interrupts it still has the earlier run in its place.
    probe, training = fit_head(network, training)
    if not training.recipe.epochs:
        return end_with_head(network, training, probe)
    plan = new_plan(training, network, started)
    learner = training.learner(network, plan.steps)
    log = new_log(training)
    interrupt = Interrupt()  # from here on there is something to finish
    best = None if probe is None else keep_head(network, training, probe)
    course = Course(limit=plan.limit)
    return train_to_end(training, plan, learner, course, Keeper(training, log, best), interrupt)


def go_on(training: Training, network: PixelNetwork, unfinished: State, started: float) -> int:
    """The rest of an unfinished run. Returns the exit status."""
    progress, run = unfinished.progress, training.options.run
    plan = resumed_plan(training, progress.steps, started)
    learner = training.learner(network, plan.steps)
    learner.restore(unfinished.tensors, progress.scalars)
    print(f"going on after step {progress.step} of {progress.steps}")
    best = read_record(run) if (run / RECORD).exists() else None
    training = replace(training, floor=None if best is None else best.floor)
    log = log_of(training, progress.step)
    course = Course(progress.step, progress.losses, progress.patience, plan.limit)
    keeper = Keeper(training, log, best, gone_on_after=progress.step)
    return train_to_end(training, plan, learner, course, keeper, Interrupt())


def train_to_end(
    training: Training,
    plan: Plan,
    learner: Learner,
    course: Course,
    keeper: Keeper,
    interrupt: Interrupt,
) -> int:
    train(training, training.schedule(plan.steps), learner, keeper, course, interrupt)
    if keeper.log is None:  # the first process ends it
        return 0 if interrupt.signal is None else 128 + interrupt.signal
    return end(training.options, keeper.best, keeper.log, interrupt)


def end_with_head(network: PixelNetwork, training: Training, probe: Probe | None) -> int:
    """A run that ends here: the head is the result. Returns the exit status."""
    log = new_log(training)
    if log is None or probe is None:
        return 0  # the first process ends it
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


def new_log(training: Training) -> Log | None:
    """In the first process, with an earlier run moved out of the way."""
    options = training.options
    if not training.hardware.processes.first:
        return None
    set_aside(options.run)
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
