"""What a benchmark finds: figures with their rounds and bars, as a table and as data."""

import statistics
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import msgspec

from packshot.tables import table

HEAD = ("FIGURE", "MEASURED", "BAR", "MET", "ROUNDS FROM", "TO")
SIGNS = {"higher": ">=", "lower": "<="}
ANSWERS = {True: "yes", False: "no", None: ""}


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One value a round; what counts is their median.

    `unit`: "" for a ratio. `bar`: what it should reach ("higher" is better) or stay within.
    """

    name: str
    unit: str = ""
    rounds: tuple[float, ...]
    better: Literal["higher", "lower"]
    bar: float | None = None

    @property
    def value(self) -> float:
        return statistics.median(self.rounds)

    @property
    def met(self) -> bool | None:
        """None without a bar."""
        if self.bar is None:
            return None
        return self.value >= self.bar if self.better == "higher" else self.value <= self.bar

    @property
    def data(self) -> dict[str, Any]:
        return {**msgspec.structs.asdict(self), "value": self.value, "met": self.met}


class Findings(msgspec.Struct, frozen=True, kw_only=True):
    """Of one benchmark. `rounds`: what was measured in each, which the figures come from."""

    figures: tuple[Figure, ...]
    rounds: tuple[Any, ...]

    @property
    def data(self) -> dict[str, Any]:
        return {"figures": [figure.data for figure in self.figures], "rounds": self.rounds}


def figures_table(figures: Iterable[Figure]) -> str:
    return table([HEAD, *map(_row, figures)])


def missed(figures: Iterable[Figure]) -> list[Figure]:
    return [figure for figure in figures if figure.met is False]


def _row(figure: Figure) -> Sequence[str]:
    value, bar = _number(figure.value), ""
    if figure.bar is not None:
        if figure.met is False and value == _number(figure.bar):
            value = f"{figure.value:.4g}"  # or the reader would not see why
        bar = f"{SIGNS[figure.better]} {_number(figure.bar)}"
    return (
        figure.name,
        f"{value} {figure.unit}".rstrip(),
        bar,
        ANSWERS[figure.met],
        _number(min(figure.rounds)),
        _number(max(figure.rounds)),
    )


def _number(value: float) -> str:
    """Three digits are all that a measurement of speed is worth."""
    places = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{places}f}"
