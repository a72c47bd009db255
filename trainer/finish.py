"""The end of a run: its checkpoint is measured at the size served, and reported."""

from pathlib import Path

import msgspec
import torch

from trainer.calibrate import fit_temperature
from trainer.checkpoint import Checkpoint, load_checkpoint, load_split_of, save_record
from trainer.evaluate import Views, evaluate, predict, score
from trainer.report import write_report


def finish(run: Path, data: Path | None = None) -> Checkpoint:
    """Measures the kept checkpoint at the size served, fits its temperature, writes the report.

    `data`: where the images are now, if not where they were in training.
    """
    kept, network = load_checkpoint(run)
    split, spec = load_split_of(run, kept, data), kept.image
    network.to("cuda" if torch.cuda.is_available() else "cpu", memory_format=torch.channels_last)
    validation = Views.of(split, split.val, spec)
    logits = predict(network, validation.images)
    test = Views.of(split, split.test, spec) if split.test else None
    kept = msgspec.structs.replace(
        kept,
        finished=True,
        validation=score(logits, validation.truth, split.labels, spec.crop),
        temperature=fit_temperature(logits, validation.truth),
        test=evaluate(network, test, split.labels, spec.crop) if test else None,
    )
    save_record(run, kept)
    write_report(run, kept, split)
    return kept
