"""How fast something was, and how two such things compare."""

from collections.abc import Iterable

import msgspec

from benchmarks.figures import Figure


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Of one round."""

    images_per_second: float
    cpu_ms: float  # an image


Pairs = Iterable[tuple[Measured, Measured]]
"""Ours and the other's, taken one after the other, of each round."""


def throughput(name: str, pairs: Pairs, bar: float | None = None) -> Figure:
    """How many times as many images a second."""
    ratios = tuple(ours.images_per_second / other.images_per_second for ours, other in pairs)
    return Figure(name=f"{name}: throughput", rounds=ratios, better="higher", bar=bar)


def cpu(name: str, pairs: Pairs, bar: float | None = None) -> Figure:
    """How many times the CPU an image."""
    ratios = tuple(ours.cpu_ms / other.cpu_ms for ours, other in pairs)
    return Figure(name=f"{name}: CPU an image", rounds=ratios, better="lower", bar=bar)
