"""Reliability: of the answers given with a probability of 80 %, are 80 % right?"""

import msgspec
import numpy as np
import numpy.typing as npt

BINS = 15
RESAMPLES = 200

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Bin(msgspec.Struct, frozen=True, kw_only=True):
    """Answers with a probability above `low`, up to `high`; `confidence`: their mean."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


class Reliability(msgspec.Struct, frozen=True, kw_only=True):
    """`error`: the expected calibration error, over equal-width bins (Naeini et al., AAAI 2015).

    With few images it is never 0: `error_by_chance` is what probabilities that are exactly right
    would show on as many (consistency resampling: Broecker and Smith, 2007).
    """

    images: int
    error: float
    error_by_chance: float
    bins: tuple[Bin, ...]  # those with images, lowest first


def reliability(confidence: Floats, right: Flags) -> Reliability:
    """Of N answers: their probabilities [N], and whether they are right [N].

    The number of bins is that of Guo et al. (ICML 2017).
    """
    place = np.clip(np.ceil(confidence * BINS).astype(np.int64) - 1, 0, BINS - 1)
    rng = np.random.default_rng(0)
    chances = [
        _error(place, confidence, rng.random(len(confidence)) < confidence)
        for _ in range(RESAMPLES)
    ]
    return Reliability(
        images=len(right),
        error=_error(place, confidence, right),
        error_by_chance=float(np.mean(chances)),
        bins=tuple(_bin(i, confidence[place == i], right[place == i]) for i in np.unique(place)),
    )


def _error(place: npt.NDArray[np.int64], confidence: Floats, right: Flags) -> float:
    """Mean over the images of |confidence - accuracy| of their bin."""
    gaps = np.bincount(place, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def _bin(i: int, confidence: Floats, right: Flags) -> Bin:
    return Bin(
        low=float(i / BINS),
        high=float((i + 1) / BINS),
        images=len(right),
        confidence=float(confidence.mean()),
        accuracy=float(right.mean()),
    )
