"""Temperature scaling: makes probabilities mean what they say (Guo et al., ICML 2017)."""

import math

import numpy as np
import numpy.typing as npt

from packshot.prediction import Logits, probabilities

LIMITS = (0.2, 5.0)
STEPS = 40
GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def fit_temperature(logits: Logits, truth: npt.NDArray[np.int64]) -> float:
    """The temperature that minimises the cross-entropy on validation images.

    Golden-section search on a log scale: there is a single minimum. Targets are smoothed (Platt,
    1999) by what so few images cannot exclude: without an error among them, the plain likelihood
    would ask for endless confidence.
    """
    images, classes = logits.shape
    doubt = 1 / (images + 2)
    targets = np.full(logits.shape, doubt / (classes - 1))
    targets[np.arange(images), truth] = 1 - doubt

    def loss(log_temperature: float) -> float:
        shares = probabilities(logits, math.exp(log_temperature))
        return float(-(targets * np.log(np.maximum(shares, 1e-12))).sum(axis=1).mean())

    low, high = (math.log(limit) for limit in LIMITS)
    for _ in range(STEPS):
        left, right = high - GOLDEN_RATIO * (high - low), low + GOLDEN_RATIO * (high - low)
        if loss(left) < loss(right):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2)
