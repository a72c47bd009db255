"""The history of training, as the log tells it: one record for each evaluation."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from trainer.log import read_lines


class Evaluated(msgspec.Struct, frozen=True, kw_only=True):
    """An evaluation. Null: not measured, or the log is of an older version.

    `size`: image side in pixels. `train_loss`: mean since the evaluation before, with augmentation
    and smoothed labels; `loss`, `accuracy` and `macro_f1` are of validation images.
    """

    epoch: int
    step: int
    size: int
    train_loss: float | None
    loss: float
    accuracy: float
    macro_f1: float
    learning_rate: float | None
    images_per_second: float | None


def read_history(log: Path) -> tuple[Evaluated, ...]:
    return tuple(_evaluated(line) for line in read_lines(log) if line["event"] == "evaluation")


def target_precision(log: Path) -> float | None:
    """What the user asked for when the run was begun, or gone on with."""
    asked = [line["options"] for line in read_lines(log) if "options" in line]
    return asked[-1].get("target_precision") if asked else None


def _evaluated(line: dict[str, Any]) -> Evaluated:
    moment, validation = line["moment"], line["validation"]
    return Evaluated(
        epoch=moment["epoch"],
        step=moment["step"],
        size=moment["size"],
        train_loss=moment.get("train_loss"),
        loss=validation["loss"],
        accuracy=validation["accuracy"],
        macro_f1=validation["macro_f1"],
        learning_rate=moment.get("learning_rate"),
        images_per_second=moment.get("images_per_second"),
    )


def stages(history: Sequence[Evaluated]) -> list[tuple[Evaluated, ...]]:
    """Stretches of the same image size: only within one do losses compare."""
    return [tuple(stage) for _, stage in groupby(history, key=lambda one: one.size)]


def throughput(history: Sequence[Evaluated]) -> dict[int, float]:
    """Images trained on a second, the median over the evaluations, by image side in pixels."""
    found: dict[int, list[float]] = {}
    for one in history:
        if one.images_per_second is not None:
            found.setdefault(one.size, []).append(one.images_per_second)
    return {size: float(np.median(rates)) for size, rates in found.items()}
