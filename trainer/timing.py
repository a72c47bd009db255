"""How long a run will take, measured on a few steps ahead, and what fits into a limit."""

import copy
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import msgspec
import torch

from packshot.errors import InvalidInput
from trainer.answered import TRAIN_SAMPLE
from trainer.course import Clock, TimeLimit
from trainer.learner import Learner
from trainer.log import say
from trainer.model import PixelNetwork
from trainer.schedule import Schedule
from trainer.training import Training

FORWARD_SHARE = 1 / 3  # of a step's work, which goes backward at twice the cost
LONG_SECONDS = 1800.0  # on a CPU: where another machine is worth a thought
MARGIN = 0.1  # of a limit, left for what the estimate does not know


class Plan(NamedTuple):
    """How many steps to take, and until when."""

    steps: int
    limit: TimeLimit


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a step, by image side; of one evaluation; and of what is measured at the end."""

    step_seconds: Mapping[int, float]
    evaluation_seconds: float
    end_seconds: float

    def of(self, schedule: Schedule) -> float:
        """Seconds of the whole run."""
        steps = sum(count * self.step_seconds[side] for side, count in schedule.sizes().items())
        return steps + schedule.evaluations() * self.evaluation_seconds + self.end_seconds


def new_plan(training: Training, network: PixelNetwork, started: float) -> Plan:
    """Of a run that begins now. `started`: the moment that --max-minutes counts from.

    On a GPU nothing is timed unless there is a limit. No step at all is planned where none fits and
    the run has a fitted head to show; without one InvalidInput is raised.
    """
    options, hardware = training.options, training.hardware
    whole = training.schedule()
    if options.max_minutes is None and hardware.gpu:
        return Plan(whole.steps, TimeLimit())
    estimate = measure(training, network, whole)
    if options.max_minutes is None:
        say(estimated(estimate.of(whole), whole.steps))
        return Plan(whole.steps, TimeLimit())
    seconds = 60 * options.max_minutes
    left = seconds - (time.monotonic() - started)
    fitting = steps_within(left, estimate, training.schedule, whole.steps)
    steps = int(hardware.processes.from_first(str(fitting).encode))  # each has timed for itself
    if not steps and not training.recipe.floor:
        raise InvalidInput(
            f"--max-minutes {options.max_minutes:g} leaves {max(0.0, left) / 60:.1f} minutes, not "
            f"enough for a step and the evaluations; all {whole.steps} steps would take "
            f"{told(estimate.of(whole))}: give it more"
        )
    if steps < whole.steps:
        say(
            f"--max-minutes {options.max_minutes:g}: {steps} of the recipe's {whole.steps} steps "
            f"fit; all of them would take {told(estimate.of(whole))}"
        )
    return Plan(steps, limit_until(started + seconds - estimate.end_seconds))


def resumed_plan(training: Training, network: PixelNetwork, steps: int, started: float) -> Plan:
    """Of a run that is gone on with: its steps were planned when it began."""
    minutes = training.options.max_minutes
    if minutes is None:
        return Plan(steps, TimeLimit())
    estimate = measure(training, network, training.schedule(steps))
    return Plan(steps, limit_until(started + 60 * minutes - estimate.end_seconds))


def limit_until(deadline: float) -> TimeLimit:
    """From now on: what came before does not bring the learning rate down."""
    now = time.monotonic()
    return TimeLimit(seconds=max(1e-3, deadline - now), started=now)


def measure(training: Training, network: PixelNetwork, schedule: Schedule) -> Estimate:
    """By a step of a copy of the network at each size, on random images."""
    split, count = training.split, training.hardware.processes.count
    images = training.recipe.step_images // count
    learner = training.learner(copy.deepcopy(network), schedule.steps)
    seconds = step_seconds(learner, schedule.sizes(), images)
    largest = max(seconds)
    served = (training.spec.crop / largest) ** 2  # times the pixels
    evaluated = seconds[largest] / images * served * FORWARD_SHARE
    return Estimate(
        step_seconds=seconds,
        evaluation_seconds=evaluated * len(split.val) / count,
        end_seconds=evaluated * (len(split.held_out) + min(TRAIN_SAMPLE, len(split.train))),
    )


def step_seconds(
    learner: Learner,
    sides: Iterable[int],
    images: int,
    clock: Clock = time.perf_counter,
) -> dict[int, float]:
    """Seconds of one step on so many random images, by their side; the learner is spoilt.

    Each size is warmed up by a step: kernels are chosen, or compiled, for each. Loading images is
    not in it: that is done beside.
    """
    found: dict[int, float] = {}
    for side in sides:
        batch = torch.randint(0, 256, (images, side, side, 3), dtype=torch.uint8)
        labels = torch.zeros(images, dtype=torch.int64)
        learner.step(batch, labels, 0.0).item()
        started = clock()
        learner.step(batch, labels, 0.0).item()  # to read the loss is to wait for the step
        found[side] = clock() - started
    return found


def steps_within(
    seconds: float, estimate: Estimate, schedule_of: Callable[[int], Schedule], steps: int
) -> int:
    """The most steps, up to `steps`, whose run fits; 0 if not one does.

    By bisection: where the size of pictures grows, each size gets its share of the fewer steps.
    """
    usable = seconds * (1 - MARGIN)
    if estimate.of(schedule_of(steps)) <= usable:
        return steps
    fits, too_many = 0, steps
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if estimate.of(schedule_of(middle)) <= usable:
            fits = middle
        else:
            too_many = middle
    return fits


def estimated(seconds: float, steps: int) -> str:
    """Of a run on a CPU, with what makes it shorter where it is long."""
    sentence = f"estimated: {told(seconds)} for {steps} steps, on the CPU"
    if seconds <= LONG_SECONDS:
        return sentence
    return (
        f"WARNING: {sentence}: take a machine with a GPU, a small network (--arch resnet18), fewer "
        "--epochs, or --max-minutes"
    )


def told(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} minutes"
