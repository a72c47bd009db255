"""The end of a run: its checkpoint is measured at the size served, and reported."""

from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch

from trainer.answered import Answers, answered
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_split_of,
    read_record,
    save_record,
)
from trainer.contact_sheet import sheets_of
from trainer.evaluate import score
from trainer.history import read_history, target_precision
from trainer.log import LOG
from trainer.metrics import metrics_of, write_metrics
from trainer.report import write_report


def finish(run: Path, data: Path | None = None, *, interrupted_at: int | None = None) -> Checkpoint:
    """Measures the kept checkpoint at the size served; writes figures and report.

    `data`: where the images are now, if not where they were in training. `interrupted_at`: the
    epoch in which training was cut short, if it was.
    """
    kept, network = load_checkpoint(run)
    split = load_split_of(run, kept, data)
    network.to("cuda" if torch.cuda.is_available() else "cpu")
    network.to(memory_format=torch.channels_last)
    answers = answered(network, split, kept.image, kept.seed)
    kept = msgspec.structs.replace(_scored(kept, answers), interrupted_at=interrupted_at)
    history = read_history(run / LOG)
    metrics = metrics_of(kept, split, history, answers, target_precision(run / LOG))
    kept = msgspec.structs.replace(kept, min_confidence=metrics.min_confidence)
    write_metrics(run, metrics)
    write_report(run, kept, split, history, metrics, sheets_of(metrics, answers))
    save_record(run, kept)  # last: a finished run has its report
    return kept


def finish_killed(run: Path, data: Path | None) -> Checkpoint:
    """Measures what is left of a run that ended without a word: cut short, as far as its log goes.

    A head that was only fitted has no course to be cut short.
    """
    history = read_history(run / LOG)
    reached = history[-1].epoch if history else 0
    cut = reached < read_record(run).recipe.epochs
    return finish(run, data, interrupted_at=reached if cut else None)


def _scored(kept: Checkpoint, answers: Sequence[Answers]) -> Checkpoint:
    """With its evaluations at the size served, and its temperature."""
    evaluations = {
        one.part: score(one.logits, one.truth, kept.labels, kept.image.crop) for one in answers
    }
    return msgspec.structs.replace(
        kept,
        finished=True,
        validation=evaluations["val"],
        temperature=answers[0].temperature,
        test=evaluations.get("test"),
    )
