"""What a run says: log.jsonl for programs, lines on the terminal for people."""

import json
import sys
import time
from pathlib import Path

import msgspec
from tqdm import tqdm

LOG = "log.jsonl"


class Log:
    """One JSON object a line, flushed, so that a run can be followed with `tail -f`."""

    def __init__(self, path: Path, after_step: int | None = None) -> None:
        self._file = path.open("w" if after_step is None else "a", encoding="utf-8")
        self._started = time.monotonic()

    def close(self) -> None:
        self._file.close()

    def write(self, event: str, **facts: object) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        line = {"event": event, "seconds": seconds, **msgspec.to_builtins(facts, enc_hook=str)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


def say(text: str) -> None:
    """Prints a line above the progress bar, at once also into a pipe."""
    tqdm.write(text)
    sys.stdout.flush()
