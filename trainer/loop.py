"""The training loop, written out: learning rate, step, evaluate, checkpoint, log."""

from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from trainer.batches import Batch, TrainingViews, served_views, training_batches
from trainer.batchnorm import reestimate_batchnorm
from trainer.course import Course, Moment
from trainer.data import Example
from trainer.interrupt import Interrupt
from trainer.keeper import Keeper
from trainer.learner import Learner
from trainer.log import say
from trainer.processes import Processes
from trainer.schedule import Schedule
from trainer.state import Progress, save_state
from trainer.training import Training


def train(
    training: Training,
    schedule: Schedule,
    learner: Learner,
    keeper: Keeper,
    course: Course,
    interrupt: Interrupt,
) -> int:
    """Trains from where the course stands to the end of the schedule; the keeper has the best.

    It ends early when the time is up, when validation brings nothing new, or when any process is
    interrupted: then the state is saved, to go on with, and the signal's number returned, else 0.
    Every random choice depends on the seed and
    the step's number alone, so that it does not matter where a run was interrupted.
    """
    recipe, processes = training.recipe, training.hardware.processes
    with _bar(training, schedule, course.step) as bar:
        for number, (images, labels) in _batches(training, schedule, course.step):
            torch.manual_seed(_seed_of(training.options.seed, number))
            time_share = time_share_of(course, processes)
            rate = schedule.learning_rate_share(number, time_share)
            loss = learner.step(images, labels, rate)
            course.took(number, loss, recipe.step_images)
            bar.update(schedule.pixels(number) - schedule.pixels(number - 1))
            bar.set_postfix_str(f"loss {course.losses.last:.2f}", refresh=False)

            if time_share >= 1 or schedule.evaluation_is_due(number):
                train_loss = processes.mean(course.mean_loss)
                size, rate = schedule.size(number), rate * recipe.learning_rate
                moment = course.moment(schedule.epoch(number), size, rate, train_loss)
                evaluation = keeper.consider(learner.candidate, moment)
                final = size == schedule.size(schedule.steps)
                course.evaluated(evaluation.macro_f1, final_size=final)
                if reason := why_to_stop(training, course, time_is_up=time_share >= 1):
                    say(reason)
                    break
            if signal := processes.greatest(interrupt.signal or 0):
                save(training, schedule, learner, keeper, course)
                return signal
            if course.saving_is_due(training.options.save_minutes):
                save(training, schedule, learner, keeper, course)
    if recipe.batchnorm_images:
        try_batchnorm(training, learner, keeper, course, schedule)
    return 0


def time_share_of(course: Course, processes: Processes) -> float:
    """Of the time limit, the same in all processes: their weights must stay the same."""
    return processes.mean(course.limit.share) if course.limit.ends else 0.0


def why_to_stop(training: Training, course: Course, *, time_is_up: bool) -> str | None:
    patience = training.recipe.patience
    if time_is_up:
        return f"--max-minutes {training.options.max_minutes:g} are over: ending here"
    if patience and course.patience.stale >= patience:
        return (
            f"stopping early: no progress in {patience} evaluations; the best macro-F1 was "
            f"{course.patience.best:.3f}"
        )
    return None


def save(
    training: Training, schedule: Schedule, learner: Learner, keeper: Keeper, course: Course
) -> None:
    """Writes what going on from here needs, in the first process."""
    if not training.hardware.processes.first:
        return
    progress = Progress(
        identity=training.identity,
        step=course.step,
        steps=schedule.steps,
        losses=course.losses.all(course.step),
        standing=keeper.standing,
        patience=course.patience,
        scalars=learner.scalars(),
    )
    save_state(training.options.run, progress, learner)


def try_batchnorm(
    training: Training, learner: Learner, keeper: Keeper, course: Course, schedule: Schedule
) -> None:
    """Re-estimates BatchNorm's statistics at the size served, and keeps them if that is better."""
    network, crop = learner.candidate, training.spec.crop
    moment = Moment(epoch=schedule.epoch(course.step), step=course.step, size=crop)
    if schedule.size(course.step) != crop:  # or there would be nothing to compare with
        keeper.consider(network, moment)
    examples = batchnorm_sample(training)
    if reestimate_batchnorm(network, served_views(training.split, examples, training.spec)):
        say(f"BatchNorm statistics re-estimated on {len(examples)} images")
        keeper.consider(network, moment)


def batchnorm_sample(training: Training) -> list[Example]:
    examples = training.split.train
    count = min(training.recipe.batchnorm_images, len(examples))
    rng = np.random.default_rng([training.options.seed, 1])
    return [examples[i] for i in rng.choice(len(examples), count, replace=False)]


def _batches(training: Training, schedule: Schedule, done: int) -> enumerate[Batch]:
    options, hardware = training.options, training.hardware
    views = TrainingViews(
        training.split, training.recipe, training.spec, options.seed, training.cache
    )
    batches = training_batches(
        views,
        schedule.after(done),
        options.workers,
        processes=hardware.processes,
        pinned=hardware.gpu,
    )
    return enumerate(batches, start=done + 1)


def _seed_of(seed: int, step: int) -> int:
    return int(np.random.SeedSequence([seed, 2, step]).generate_state(1, np.uint64)[0] >> 1)


def _bar(training: Training, schedule: Schedule, done: int) -> "tqdm[Any]":
    return tqdm(
        initial=schedule.pixels(done),
        total=schedule.pixels(schedule.steps),
        unit="px",
        unit_scale=True,
        desc=f"training {training.options.arch}",
        # None: shown on a terminal. A log has a line an evaluation.
        disable=None if training.hardware.processes.first else True,
    )
