"""What a person is told at the end of a run: the result, what it means, and what could be done."""

from collections.abc import Iterator
from pathlib import Path

from trainer import abstaining, diagnosis
from trainer.checkpoint import Checkpoint
from trainer.head import against_floor
from trainer.metrics import read_metrics
from trainer.recipes import against_band
from trainer.report import REPORT


def conclude(kept: Checkpoint, run: Path) -> None:
    result = kept.test or kept.validation
    low, high = result.interval
    print(
        f"accuracy {result.accuracy:.1%} on {result.images} held-out images at "
        f"{result.image_size} px (95 % interval {low:.1%} to {high:.1%}), "
        f"macro-F1 {result.macro_f1:.3f}"
    )
    for line in judgement(kept, result.accuracy):
        print(line)
    for line in findings_of(run):
        print(line)
    print(f"checkpoint in {run}, report in {run / REPORT}")


def judgement(kept: Checkpoint, accuracy: float) -> Iterator[str]:
    """Nothing of a run that was cut short: what training gives is not known before its end."""
    if kept.interrupted_at is not None:
        return
    if sentence := against_floor(kept):
        yield sentence
    if sentence := against_band(kept.recipe, accuracy):
        yield sentence


def findings_of(run: Path) -> Iterator[str]:
    """What the metrics say besides accuracy."""
    metrics = read_metrics(run)
    calibration = metrics.calibration
    yield (
        f"calibration error {calibration.after.error:.1%}, before temperature "
        f"{calibration.temperature:.2f} {calibration.before.error:.1%}"
    )
    if metrics.abstaining is not None:
        yield abstaining.told(metrics.abstaining)
    for finding in metrics.diagnosis:
        yield diagnosis.told(finding)
