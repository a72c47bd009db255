"""TensorBoard event files beside the log: `tensorboard --logdir runs` follows a run."""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tensorboardX import RecordWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.proto.summary_pb2 import Summary

NAME = "events.out.tfevents."
"""What follows is the time in ns: TensorBoard reads the files of a folder by name."""
EVENTS = NAME + 19 * "[0-9]"
"""As `glob` takes it: other programs put more behind the time."""


class EventFile:
    """Scalars by step, on disk after each call.

    TensorBoard drops what earlier files of the folder say of steps after `after_step`.
    """

    def __init__(self, folder: Path, after_step: int | None) -> None:
        self._writer = RecordWriter(str(folder / f"{NAME}{time.time_ns()}"))
        self._write(Event(file_version="brain.Event:2"))
        if after_step is not None:
            restart = SessionLog(status=SessionLog.START)
            self._write(Event(step=after_step + 1, session_log=restart))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in scalars.items()]
        self._write(Event(step=step, summary=Summary(value=values)))

    def close(self) -> None:
        self._writer.close()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        self._writer.write(event.SerializeToString())
        self._writer.flush()


def remove_event_files(folder: Path) -> None:
    for old in folder.glob(EVENTS):
        old.unlink()


def scalars_of(moment: Mapping[str, Any], validation: Mapping[str, Any]) -> dict[str, float]:
    """Of an evaluation's line in the log; what was not measured is left out."""
    values = {
        "loss/train": moment.get("train_loss"),
        "loss/validation": validation.get("loss"),
        "validation/accuracy": validation.get("accuracy"),
        "validation/macro_f1": validation.get("macro_f1"),
        "training/learning_rate": moment.get("learning_rate"),
        "training/images_per_second": moment.get("images_per_second"),
        "training/image_size": moment.get("size"),
    }
    return {tag: value for tag, value in values.items() if value is not None}
