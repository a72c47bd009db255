"""One benchmark of the set, run for its own sake."""

from collections.abc import Callable

from benchmarks.figures import Findings, figures_table
from benchmarks.options import ROUNDS, Options, parse_options


def run_alone(
    measure: Callable[[Options], Findings], description: str | None, *, rounds: int = ROUNDS
) -> None:
    """`rounds`: unless the command line asks for others."""
    print(figures_table(measure(parse_options(description, rounds=rounds)).figures))
