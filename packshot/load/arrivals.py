"""When requests are due: the part of one client process in an open loop."""

import itertools
from collections.abc import Iterator

import numpy as np

from packshot.load_plan import LoadPlan

DRAWN_AT_A_TIME = 256


def due_times(
    plan: LoadPlan, begin: float, end: float, *, number: int, senders: int
) -> Iterator[float]:
    """From `begin` to `end`, of sender `number` among `senders`, who together keep the rate.

    Poisson: gaps are exponential; independent senders of a part of the rate each add up to one
    such process of the whole rate. Constant: the senders take turns.
    """
    assert plan.rate is not None
    dues: Iterator[float]
    if plan.arrivals == "constant":
        dues = (begin + k / plan.rate for k in itertools.count(number, senders))
    else:
        dues = _poisson(begin, plan.rate / senders, np.random.default_rng((plan.seed, number)))
    return itertools.takewhile(lambda due: due < end, dues)


def seed_of_run(seed: int, number: int) -> int:
    """Of one among several runs: two at the same rate are then two samples, not one drawn twice."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _poisson(begin: float, rate: float, random: np.random.Generator) -> Iterator[float]:
    due = begin
    while True:
        for gap in random.exponential(1 / rate, DRAWN_AT_A_TIME):
            due += float(gap)
            yield due
