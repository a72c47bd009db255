"""Intervals: what a few images, or a few seconds, say of all of them."""

import math
import statistics
from collections.abc import Sequence

Interval = tuple[float, float]
"""95 %, from, to."""

Z = 1.96
"""Standard deviations of a normal distribution that hold 95 % of it."""


def share_interval(hits: int, total: int) -> Interval:
    """Wilson's score interval of hits / total (E. B. Wilson, 1927). `total` is at least 1."""
    share = hits / total
    centre = (share + Z * Z / (2 * total)) / (1 + Z * Z / total)
    half = Z / (1 + Z * Z / total) * (share * (1 - share) / total + Z * Z / (4 * total**2)) ** 0.5
    return (max(0.0, centre - half), min(1.0, centre + half))


def paired_drop_interval(lost: int, won: int, total: int) -> Interval:
    """Of (lost - won) / total, where both of two classifiers answered the same `total` images.

    `lost`: only the first was right; `won`: only the second. Wald's interval with half an image
    added to each of the four outcomes (Agresti and Min, Statistics in Medicine, 2005).
    """
    lost_, won_, total_ = lost + 0.5, won + 0.5, total + 2
    drop = (lost_ - won_) / total_
    half = Z * max(0.0, (lost_ + won_) / total_ - drop**2) ** 0.5 / total_**0.5
    return (max(-1.0, drop - half), min(1.0, drop + half))


T_OF_9 = 2.262
"""Student's t that holds 95 %, with nine degrees of freedom: of ten samples."""


def mean_interval(samples: Sequence[float]) -> Interval:
    """Of the mean of ten samples, by Student's t. Raises ValueError for another number of them."""
    if len(samples) != 10:
        raise ValueError(f"{len(samples)} samples; the interval is that of ten")
    mean, half = statistics.fmean(samples), T_OF_9 * statistics.stdev(samples) / 10**0.5
    return (mean - half, mean + half)


def nearest_rank(share: float, total: int) -> int:
    """Of the quantile `share` among `total` sorted samples, from 1: the first that at least so many
    of them do not exceed.
    """
    return max(1, math.ceil(round(share * total, 6)))  # 0.999 * 3000 may be a trillionth above


def quantile_interval(share: float, total: int) -> Interval:
    """The shares of `total` sorted samples between which the quantile `share` of all lies.

    Whatever the distribution: the number of samples below the quantile is binomial (Conover,
    Practical Nonparametric Statistics, 1999, section 3.2), here in its normal approximation.
    """
    half = Z * (share * (1 - share) / total) ** 0.5
    return (max(0.0, share - half), min(1.0, share + half))
