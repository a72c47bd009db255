"""What a run says: log.jsonl for programs, event files for TensorBoard, lines for people."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
from tqdm import tqdm

from packshot.atomic import write_whole
from trainer.events import EventFile, remove_event_files, scalars_of

LOG = "log.jsonl"


class Log:
    """One JSON object a line, flushed, so that a run can be followed with `tail -f`.

    `after_step`: goes on with the log of a run that is taken up again after that step. What is
    told of later evaluations is dropped, and `seconds` count on. Without it the log begins anew.
    """

    def __init__(self, path: Path, after_step: int | None = None) -> None:
        seconds = 0.0
        if after_step is None:
            path.write_bytes(b"")
            remove_event_files(path.parent)
        else:
            seconds = cut(path, after_step)
        self._file = path.open("a", encoding="utf-8")
        self._events = EventFile(path.parent, after_step)
        self._started = time.monotonic() - seconds

    def close(self) -> None:
        self._file.close()
        self._events.close()

    def write(self, event: str, **facts: object) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        told = msgspec.to_builtins(facts, enc_hook=str)
        self._file.write(json.dumps({"event": event, "seconds": seconds, **told}) + "\n")
        self._file.flush()
        if event == "evaluation":
            moment = told["moment"]
            self._events.write(moment["step"], scalars_of(moment, told["validation"]))


def cut(path: Path, after_step: int) -> float:
    """Drops evaluations of later steps from the log; returns the seconds of its last line."""
    kept = [
        line
        for line in (read_lines(path) if path.exists() else [])
        if line["event"] != "evaluation" or line["moment"]["step"] <= after_step
    ]
    write_whole(path, "".join(json.dumps(line) + "\n" for line in kept).encode())
    return float(kept[-1]["seconds"]) if kept else 0.0


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The log, without a last line that was cut off when its writer was killed."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def say(text: str) -> None:
    """Prints a line above the progress bar, at once also into a pipe."""
    tqdm.write(text)
    sys.stdout.flush()
