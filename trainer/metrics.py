"""metrics.json: every figure of a finished run, for programs. Its format is `Metrics`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from packshot.atomic import write_whole
from packshot.bundle import to_json
from packshot.errors import NotFound
from packshot.prediction import probabilities
from packshot.record import decode_record
from trainer.abstaining import Abstaining, choose_threshold
from trainer.answered import Answers, Part
from trainer.checkpoint import Checkpoint
from trainer.coverage import Operation, curve
from trainer.data import Split
from trainer.diagnosis import Case, Finding, diagnose
from trainer.doubtful import Doubts, confident_mistakes, likely_label_errors
from trainer.evaluate import Evaluation, Share
from trainer.history import Evaluated, throughput
from trainer.probe import Floor
from trainer.reliability import Reliability, reliability
from trainer.review import data_figures

FORMAT = 1
METRICS = "metrics.json"


class Calibration(msgspec.Struct, frozen=True, kw_only=True):
    """How far probabilities can be taken at their word, before and after the temperature."""

    temperature: float  # fitted on validation
    before: Reliability
    after: Reliability


class Metrics(msgspec.Struct, frozen=True, kw_only=True):
    """Accuracies, shares and probabilities run from 0 to 1; intervals are Wilson's, 95 %.

    `measured_on`: the part that `calibration` and `coverage` are of: "test", or "val" where there
    are no test images. `train`: of a sample of the training images, as served, not augmented.
    `coverage`: from the surest answer alone to all of them. `abstaining`: null where no precision
    was asked for. `images_per_second`: trained on, by image side in pixels.
    """

    format: int = FORMAT
    architecture: str
    recipe: str
    epoch: int
    step: int
    measured_on: Part
    validation: Evaluation
    test: Evaluation | None
    train: Share
    calibration: Calibration
    coverage: tuple[Operation, ...]
    min_confidence: float
    abstaining: Abstaining | None
    images_per_second: dict[int, float]
    mistakes: Doubts
    likely_label_errors: Doubts
    diagnosis: tuple[Finding, ...]
    floor: Floor | None  # what a head on the frozen backbone reached
    data: dict[str, Any]  # as the "data" line of log.jsonl, its warnings among them


def metrics_of(
    record: Checkpoint,
    split: Split,
    history: Sequence[Evaluated],
    answers: Sequence[Answers],
    target_precision: float | None,
) -> Metrics:
    """`record`: with its evaluations at the size served; `answers`: of the parts that there are."""
    part = {one.part: one for one in answers}
    final: Part = "test" if "test" in part else "val"
    measured = part[final]
    held_out = [one for one in answers if one.part != "train"]
    abstaining = None
    if target_precision is not None:
        abstaining = choose_threshold(target_precision, part["val"], part.get("test"))
    errors = likely_label_errors(held_out, [part["train"]], split.labels)
    case = Case(
        architecture=record.architecture,
        recipe=record.recipe,
        pretrained=record.weights.pretrained,
        images=len(split.examples),
        train_counts=tuple(split.train_counts),
        train=Share.of(part["train"].right),
        held_out=Share.of(measured.right),
        history=tuple(history),
        likely_label_errors=errors.images,
        interrupted_at=record.interrupted_at,
    )
    return Metrics(
        architecture=record.architecture,
        recipe=record.recipe.name,
        epoch=record.epoch,
        step=record.step,
        measured_on=final,
        validation=record.validation,
        test=record.test,
        train=case.train,
        calibration=calibration_of(measured),
        coverage=curve(measured.confidence, measured.right),
        min_confidence=0.0 if abstaining is None else abstaining.threshold,
        abstaining=abstaining,
        images_per_second=throughput(history),
        mistakes=confident_mistakes(held_out, split.labels),
        likely_label_errors=errors,
        diagnosis=diagnose(case),
        floor=record.floor,
        data=data_figures(split),
    )


def calibration_of(answers: Answers) -> Calibration:
    return Calibration(
        temperature=answers.temperature,
        before=reliability(probabilities(answers.logits).max(axis=1), answers.right),
        after=reliability(answers.confidence, answers.right),
    )


def write_metrics(run: Path, metrics: Metrics) -> None:
    write_whole(run / METRICS, to_json(metrics))


def read_metrics(run: Path) -> Metrics:
    """Raises NotFound or DamagedFile."""
    path = run / METRICS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise NotFound(f"{path} is missing: copy the whole run folder, or train again") from error
    return decode_record(content, Metrics, path=path, what="record of metrics", reads=FORMAT)
