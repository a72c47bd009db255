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
from trainer.course import Course, TimeLimit
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
from trainer.timing import new_plan, resumed_plan
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
        log.write("resume", step=course.step, options=options)
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
        log.write("floor", **asdict(training.floor))
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
