"""Abstaining: the probability below which a person is asked, chosen for a precision promised."""

import math

import msgspec

from packshot.intervals import Z
from trainer.answered import Answers
from trainer.coverage import Operation, operation, operations


class Abstaining(msgspec.Struct, frozen=True, kw_only=True):
    """The threshold that a target precision asks for.

    `threshold`: 0, nothing abstains, where all may be answered or where none reaches the target.
    `validation`, `test`: what it gives there; validation flatters, for it was chosen there.
    `observed`: where none reaches the target, the lowest at which the precision counted, without
    regard to its interval, is the target; null if there is none either.
    """

    target: float
    reached: bool
    threshold: float
    validation: Operation
    test: Operation | None
    observed: Operation | None


def choose_threshold(target: float, validation: Answers, test: Answers | None) -> Abstaining:
    """The lowest threshold at which the precision on validation images is surely the target.

    Surely: by the lower end of its interval. Of many thresholds tried, some look good on a few
    images by luck alone (Geifman and El-Yaniv, NeurIPS 2017, who bound the risk likewise).
    """
    found = operations(validation.confidence, validation.right)
    sure = _lowest(found, [one.interval is not None and one.interval[0] >= target for one in found])
    counted = _lowest(found, [(one.precision or 0.0) >= target for one in found])
    threshold = 0.0 if sure is None else _between(found, sure)
    return Abstaining(
        target=target,
        reached=sure is not None,
        threshold=threshold,
        validation=operation(threshold, validation.confidence, validation.right),
        test=None if test is None else operation(threshold, test.confidence, test.right),
        observed=None if sure is not None or counted is None else found[counted],
    )


def _lowest(found: list[Operation], good: list[bool]) -> int | None:
    return max((i for i in range(len(found)) if good[i]), default=None)


def _between(found: list[Operation], i: int) -> float:
    """Halfway to the next lower probability: engines differ from PyTorch in the last digits."""
    if i + 1 == len(found):
        return 0.0
    return (found[i].threshold + found[i + 1].threshold) / 2


def fewest_to_show(target: float) -> int:
    """Answers, all of them right, whose interval begins at the target."""
    return math.ceil(target / (1 - target) * Z * Z)


def told(choice: Abstaining) -> str:
    """For people, in one paragraph."""
    if choice.reached:
        where = f"answers below a probability of {choice.threshold:.3f} abstain"
        if choice.threshold == 0:
            where = "every answer may be given"
        test = "" if choice.test is None else f"; on test {_told(choice.test)}"
        return (
            f"for a precision of {choice.target:.1%}, {where}: on validation, where that was "
            f"chosen, {_told(choice.validation)}{test}"
        )
    return (
        f"no threshold surely reaches a precision of {choice.target:.1%}, so nothing abstains: it "
        f"takes {fewest_to_show(choice.target)} answers, all of them right, to show it, and there "
        f"are {choice.validation.images} validation images; {_observed(choice)}"
    )


def _told(found: Operation) -> str:
    if found.precision is None or found.interval is None:
        return f"none of {found.images} images is answered"
    low, high = found.interval
    return (
        f"{found.coverage:.1%} of {found.images} images are answered, {found.precision:.1%} of them"
        f" rightly (95 % interval {low:.1%} to {high:.1%})"
    )


def _observed(choice: Abstaining) -> str:
    if choice.observed is None:
        return "nor does the precision counted reach it anywhere: a better network is needed"
    return (
        f"counted without that care it is reached at {choice.observed.threshold:.3f}, where "
        f"{_told(choice.observed)}; to use it: python -m exporters --min-confidence "
        f"{math.floor(choice.observed.threshold * 1000) / 1000:.3f}"
    )
