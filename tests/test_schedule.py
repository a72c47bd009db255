"""Schedule, course and time: what a run does when, and what of it fits into a limit."""

import itertools
import math

import pytest
import torch

from packshot.errors import InvalidInput
from trainer.course import Course, Losses, Patience, TimeLimit
from trainer.recipes import FROM_SCRATCH, MEDIUM, changed
from trainer.schedule import Schedule
from trainer.timing import Estimate, steps_within

LABELS = [0, 1] * 20
SIZES = changed(FROM_SCRATCH, epochs=4, batch_size=8)  # 5 steps an epoch, 20 in all


def test_steps_after_any_other_are_those_of_the_whole_run():
    schedule = Schedule(SIZES, LABELS, seed=3)
    whole = list(schedule.after(0))
    assert [step.number for step in whole] == list(range(1, 21))
    for done in (1, 4, 5, 6, 19, 20):
        assert list(schedule.after(done)) == whole[done:]


def test_fewer_steps_share_the_sizes_alike():
    assert Schedule(SIZES, LABELS, 0).sizes() == {64: 13, 128: 6, 224: 1}
    shorter = Schedule(SIZES, LABELS, 0, steps=10)
    assert shorter.sizes() == {64: 6, 128: 3, 224: 1}
    assert shorter.evaluations() == 2
    assert [step.examples for step in shorter.after(0)] == [
        step.examples for step in itertools.islice(Schedule(SIZES, LABELS, 0).after(0), 10)
    ]


def test_accumulated_batches_make_fewer_and_larger_steps():
    schedule = Schedule(changed(SIZES, accumulate=2), LABELS, seed=0)
    assert schedule.steps == 4 * 3
    assert {len(step.examples) for step in schedule.after(0)} == {16}


def test_the_rate_follows_the_work_or_the_time_whichever_is_further():
    schedule = Schedule(changed(MEDIUM, epochs=10, warmup_share=0.0), LABELS, seed=0)
    last = schedule.steps
    low = MEDIUM.final_learning_rate_share
    assert schedule.learning_rate_share(last) == pytest.approx(low)
    middle = schedule.learning_rate_share(last // 2)
    assert middle == pytest.approx(low + (1 - low) / 2)
    assert schedule.learning_rate_share(last // 2, 0.2) == middle
    assert schedule.learning_rate_share(last // 2, 1.0) == pytest.approx(low)
    assert schedule.learning_rate_share(1, 0.5) == pytest.approx(middle)


def test_patience_counts_evaluations_without_progress():
    patience = Patience()
    for macro_f1, best, stale in (
        (0.5, 0.5, 0),
        (0.5009, 0.5, 1),
        (0.4, 0.5, 2),
        (0.502, 0.502, 0),
    ):
        patience = patience.after(macro_f1)
        assert (patience.best, patience.stale) == (best, stale)


def test_patience_begins_at_the_last_size():
    course = Course()
    course.evaluated(0.9, final_size=False)
    course.evaluated(0.5, final_size=True)
    assert course.patience == Patience(best=0.5)


def test_a_loss_that_is_no_number_is_told_with_its_step_and_a_remedy():
    losses = Losses((1.0,))
    losses.add(torch.tensor(0.5), step=6)
    assert losses.all(6) == (1.0, 0.5)
    for value in (math.nan, math.inf):
        with pytest.raises(InvalidInput, match=f"the loss is {value} at step 7: lower --learning"):
            losses.add(torch.tensor(value), step=7)


class Clock:
    """Stands still until it is moved."""

    seconds = 100.0

    def __call__(self) -> float:
        return self.seconds


def test_saving_is_due_every_few_minutes():
    clock = Clock()
    course = Course(limit=TimeLimit(clock=clock))
    assert not course.saving_is_due(2)
    clock.seconds += 119
    assert not course.saving_is_due(2)
    clock.seconds += 1
    assert course.saving_is_due(2)
    assert not course.saving_is_due(2)
    assert course.saving_is_due(0)


def test_speed_is_that_of_the_steps_alone():
    clock = Clock()
    course = Course(limit=TimeLimit(clock=clock))
    for step in (1, 2):
        course.took(step, torch.tensor(1.0), images=16)
    clock.seconds += 4
    assert course.moment(1, 64, 1e-4, 1.0).images_per_second == 8
    clock.seconds += 100  # an evaluation
    course.evaluated(0.5, final_size=True)
    course.took(3, torch.tensor(1.0), images=16)
    clock.seconds += 1
    moment = course.moment(1, 64, 1e-4, course.mean_loss)
    assert (moment.step, moment.images_per_second, moment.train_loss) == (3, 16, 1.0)


def test_the_share_of_a_limit():
    clock = Clock()
    assert TimeLimit(clock=clock).share == 0
    limit = TimeLimit(seconds=60, started=100, clock=clock)
    clock.seconds += 15
    assert limit.share == 0.25
    clock.seconds += 1000
    assert limit.share == 1


ESTIMATE = Estimate(
    step_seconds={64: 1.0, 128: 4.0, 224: 10.0}, evaluation_seconds=5.0, end_seconds=8.0
)


def schedule_of(steps: int) -> Schedule:
    return Schedule(SIZES, LABELS, 0, steps)


def test_an_estimate_adds_up_steps_evaluations_and_the_end():
    assert ESTIMATE.of(schedule_of(20)) == 13 * 1 + 6 * 4 + 1 * 10 + 4 * 5 + 8


def test_a_limit_that_is_long_enough_changes_nothing():
    assert steps_within(75 / 0.9 + 1, ESTIMATE, schedule_of, 20) == 20


def test_a_limit_takes_as_many_steps_as_fit():
    for seconds in (40.0, 50.0, 60.0, 70.0):
        steps = steps_within(seconds, ESTIMATE, schedule_of, 20)
        assert ESTIMATE.of(schedule_of(steps)) <= 0.9 * seconds
        assert ESTIMATE.of(schedule_of(steps + 1)) > 0.9 * seconds


def test_nothing_fits_into_a_limit_too_short():
    assert steps_within(23.5 / 0.9, ESTIMATE, schedule_of, 20) == 1  # a step at 224 px and the rest
    assert steps_within(22 / 0.9, ESTIMATE, schedule_of, 20) == 0
    assert steps_within(-1, ESTIMATE, schedule_of, 20) == 0
