"""Rounds that the other guests of the same hardware left alone.

A virtual machine's cores are lent: the kernel counts the time in which it wanted one and had none
("steal" in /proc/stat). A round that lost more than a twentieth is told, set aside and taken again.
"""

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

STAT = Path("/proc/stat")
STEAL = 7  # field of the line of all cores, behind its name
MOST_STOLEN = 0.05
TRIES = 3  # times as many rounds as are wanted; then the least disturbed ones fill up

T = TypeVar("T")


def calm_rounds(count: int, take: Callable[[], T], told: Callable[[T], str]) -> list[T]:
    """What `take` found in `count` rounds, in the order in which they were taken."""
    taken: list[tuple[float, T]] = []
    while len(_calm(taken)) < count and len(taken) < TRIES * count:
        before = ticks()
        found = take()
        share = stolen(before, ticks())
        taken.append((share, found))
        aside = "; set aside" if share > MOST_STOLEN else ""
        print(f"{told(found)} [{share:.0%} of the CPU stolen{aside}]", flush=True)
    least = sorted(range(len(taken)), key=lambda number: taken[number][0])[:count]
    return [taken[number][1] for number in sorted(least)]


def stolen(before: list[int], after: list[int]) -> float:
    """Share of the cores' time; 0 where the kernel does not count it."""
    passed = [late - early for early, late in zip(before, after, strict=True)]
    return passed[STEAL] / total if len(passed) > STEAL and (total := sum(passed)) else 0.0


def _calm(taken: list[tuple[float, T]]) -> list[T]:
    return [found for share, found in taken if share <= MOST_STOLEN]


def ticks() -> list[int]:
    """Of all cores together since the start of the machine, by kind."""
    try:
        return [int(field) for field in STAT.read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return []
