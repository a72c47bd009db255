"""Accuracy against coverage: where only the surest answers are given, more of them are right.

(El-Yaniv and Wiener, JMLR 2010: the risk-coverage trade-off of selective classification.)
"""

import msgspec
import numpy as np

from packshot.intervals import Interval, share_interval
from trainer.reliability import Flags, Floats

CURVE_POINTS = 100


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """What a threshold gives: answers with at least that probability are given, others abstain.

    `precision` of the answers given, with Wilson's 95 % interval; null where none is given.
    """

    threshold: float
    images: int
    answered: int
    precision: float | None
    interval: Interval | None

    @property
    def coverage(self) -> float:
        return self.answered / self.images


def operation(threshold: float, confidence: Floats, right: Flags) -> Operation:
    """On N answers with these probabilities [N], by the server's comparison."""
    given = confidence >= threshold
    return _operation(threshold, len(right), int(given.sum()), int(right[given].sum()))


def operations(confidence: Floats, right: Flags) -> list[Operation]:
    """At every probability that occurs, highest first: from the surest image alone to all."""
    order = np.argsort(-confidence, kind="stable")
    falling, hits = confidence[order], np.cumsum(right[order])
    last = np.flatnonzero(np.append(falling[1:] < falling[:-1], True))  # of equal ones
    return [_operation(float(falling[i]), len(right), int(i) + 1, int(hits[i])) for i in last]


def curve(confidence: Floats, right: Flags) -> tuple[Operation, ...]:
    """The operations, or `CURVE_POINTS` of them, evenly taken."""
    every = operations(confidence, right)
    taken = np.unique(np.linspace(0, len(every) - 1, CURVE_POINTS).round().astype(int))
    return tuple(every[i] for i in taken)


def _operation(threshold: float, images: int, answered: int, hits: int) -> Operation:
    return Operation(
        threshold=threshold,
        images=images,
        answered=answered,
        precision=hits / answered if answered else None,
        interval=share_interval(hits, answered) if answered else None,
    )
