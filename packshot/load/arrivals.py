"""When requests are due: the part of one client process in an open loop."""

import itertools
from collections.abc import Iterator

import numpy as np

from packshot.load_plan import LoadPlan


def due_times(
    plan: LoadPlan, begin: float, end: float, *, number: int, senders: int
) -> Iterator[float]:
    """From `begin`, when the warm-up does, to `end`, of sender `number` among `senders`, who
    together keep the rate.

    Constant: the senders take turns. Poisson: as those arrivals are once it is known how many they
    were, independent and anywhere alike (Ross, Introduction to Probability Models, section 5.3):
    the warm-up and the window have each the number that the rate makes due. Drawn too, it would be
    off by a tenth in 100 requests, and a server that answered all of them seem to lack some.
    """
    assert plan.rate is not None
    dues: Iterator[float]
    if plan.arrivals == "constant":
        dues = (begin + k / plan.rate for k in itertools.count(number, senders))
    else:
        random = np.random.default_rng((plan.seed, number))
        opens = begin + plan.warmup_seconds
        spans = ((begin, plan.warmup_seconds), (opens, plan.seconds))
        dues = itertools.chain.from_iterable(
            _at_random(
                start, seconds, len(range(number, round(plan.rate * seconds), senders)), random
            )
            for start, seconds in spans
        )
    return itertools.takewhile(lambda due: due < end, dues)


def seed_of_run(seed: int, number: int) -> int:
    """Of one among several runs: two at the same rate are then two samples, not one drawn twice."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])


def _at_random(
    start: float, seconds: float, count: int, random: np.random.Generator
) -> Iterator[float]:
    """So many independent moments in order, without the memory for all of them: of n that are
    left, the first is as far from the end as the last of n would be from the start.
    """
    left = seconds
    for n in range(count, 0, -1):
        left *= random.random() ** (1 / n)
        yield start + seconds - left
