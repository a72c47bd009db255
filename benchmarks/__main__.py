"""The set: what packshot's speed is held against, with one table and bench.json at the end.

A missed bar does not end the run: on a busy machine all may be missed, which its load tells.

    python -m benchmarks --models models --model products --only serving,plain
"""

import argparse
import time
from pathlib import Path

from benchmarks.figures import figures_table, missed
from benchmarks.options import add_options, chosen
from benchmarks.report import report, start, write_report
from benchmarks.series import NAMES, measure_all
from packshot.machine import this_machine


def main() -> int:
    """1 if a benchmark came to no end."""
    given = _parse()
    options, started, began = chosen(given), start(), time.perf_counter()
    print(this_machine(), flush=True)
    series = measure_all(given.only, options)
    written = report(started, options, series)
    write_report(given.out / "bench.json", written)
    figures = [figure for findings in series.found.values() for figure in findings.figures]
    barred = [figure for figure in figures if figure.bar is not None]
    print(f"\n{figures_table(figures)}\n")
    minutes = (time.perf_counter() - began) / 60
    print(
        f"{len(missed(figures))} of {len(barred)} bars missed, {len(series.failed)} benchmarks "
        f"failed; {minutes:.1f} minutes, load "
        f"{written.load_before[0]:.1f} before and {written.load_after[0]:.1f} after, "
        f"{written.stolen:.0%} of the CPU stolen; every round: {given.out / 'bench.json'}"
    )
    return 1 if series.failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_options(parser)
    parser.add_argument("--only", type=_names, default=list(NAMES), help=",".join(NAMES))
    parser.add_argument("--out", type=Path, default=Path("runs/bench"), help="for bench.json")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    asked = [name.strip() for name in text.split(",")]
    if unknown := [name for name in asked if name not in NAMES]:
        raise argparse.ArgumentTypeError(
            f"{', '.join(unknown)}: not in the set; choose from {', '.join(NAMES)}"
        )
    return asked


if __name__ == "__main__":
    raise SystemExit(main())
