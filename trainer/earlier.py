"""Earlier runs in the same folder: a new run takes the place of none, and touches nothing else.

runs/<name>/previous/      the last run that had finished when another was begun
runs/<name>/unfinished/    the last one that had not
"""

from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path

from packshot.errors import DamagedFile, NotFound
from trainer.checkpoint import RECORD, SPLITS, STATE, WEIGHTS, read_record
from trainer.events import EVENTS
from trainer.log import LOG
from trainer.metrics import METRICS
from trainer.report import REPORT

WRITTEN = (RECORD, WEIGHTS, SPLITS, STATE, LOG, EVENTS, METRICS, REPORT)
"""Patterns of all that a run leaves. What matches none is somebody else's: it stays in its place.

A test holds them against what a run leaves.
"""
WORTH_KEEPING = (RECORD, STATE, METRICS, REPORT)  # a log alone is begun anew
PREVIOUS = "previous"
UNFINISHED = "unfinished"
MOVING = ".moving-to-"


def set_aside(run: Path) -> str:
    """Moves an earlier run out of the way; returns where to, in a sentence, or "" if there is none.

    Into run/previous or run/unfinished, each only in place of its like. Killed on the way, it goes
    on when it is called again.
    """
    place = _place_for(run)
    if place is None:
        return ""
    moving = run / f"{MOVING}{place.name}"
    moving.mkdir(exist_ok=True)
    for path in written(run):
        path.rename(moving / path.name)
    if place.exists():
        for path in written(place):
            path.unlink()
        for path in list(place.iterdir()):  # not ours: it stays where it is
            path.rename(moving / path.name)
        place.rmdir()
    moving.rename(place)
    return _told(place)


def written(run: Path) -> Iterator[Path]:
    """The files in a folder that a run left."""
    found = chain.from_iterable(list(run.glob(pattern)) for pattern in WRITTEN)
    return (path for path in found if path.is_file())


def has_finished(run: Path) -> bool:
    """Not so one that was interrupted, though it has been measured."""
    try:
        return read_record(run).trained_to_the_end and not (run / STATE).exists()
    except (NotFound, DamagedFile):
        return False


def _place_for(run: Path) -> Path | None:
    """Where the run in this folder is to go, None if there is none."""
    for begun in run.glob(f"{MOVING}*"):
        return run / begun.name.removeprefix(MOVING)
    if not any((run / name).exists() for name in WORTH_KEEPING):
        return None
    if has_finished(run):
        return run / PREVIOUS
    # Gone on with where it lay, an unfinished run has finished there.
    names = chain([UNFINISHED], (f"{UNFINISHED}-{number}" for number in count(2)))
    return next(run / name for name in names if not has_finished(run / name))


def _told(place: Path) -> str:
    if place.name == PREVIOUS:
        return f"the earlier run is now in {place}"
    sentence = f"the earlier run, which had not finished, is now in {place}"
    if (place / STATE).exists():
        sentence += f": --run {place} --resume goes on with it"
    return sentence
