"""Intervals: what a share that was counted on a few images says of all images."""

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
