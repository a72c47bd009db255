"""Evaluates what has been learnt, and keeps the best of it as the run's checkpoint."""

import numpy as np

from trainer.batches import served_views
from trainer.checkpoint import Checkpoint, save_checkpoint, versions
from trainer.course import Moment
from trainer.evaluate import Evaluation, Rank, brief, predict, rank, resized, score, size_of
from trainer.log import Log, say
from trainer.model import PixelNetwork
from trainer.training import Training


class Keeper:
    """`best`: the checkpoint in the run folder, None before there is one.

    Each process predicts its share of the validation images; all of them know the result, the
    first one writes it down. `standing`: what the best was kept for, to be beaten; the figures in
    its record may have been measured since, at another size.
    """

    def __init__(
        self,
        training: Training,
        log: Log | None,
        best: Checkpoint | None = None,
        standing: Rank | None = None,
    ) -> None:
        self.best, self.standing, self.log = best, standing, log
        self._training = training
        split, self._processes = training.split, training.hardware.processes
        self._truth = np.array([example.label for example in split.val], np.int64)
        self._images = served_views(split, self._processes.share(split.val), training.spec)

    def consider(self, network: PixelNetwork, moment: Moment) -> Evaluation:
        """Evaluates, logs, and writes a checkpoint if this is the best so far."""
        split = self._training.split
        self._processes.same_as_first(network.buffers())  # each has seen other images
        logits = predict(network, resized(self._images, moment.size))
        logits = self._processes.gathered(logits, len(split.val))
        evaluation = score(logits, self._truth, split.labels, moment.size)
        kept = self.standing is None or rank(evaluation) > self.standing
        if self.log is not None:
            self.log.write("evaluation", moment=moment, validation=brief(evaluation))
        say(f"{_line(moment, evaluation)}{self._told(evaluation) if kept else ''}")
        if kept:
            self._keep(network, moment, evaluation)
        return evaluation

    def _told(self, evaluation: Evaluation) -> str:
        """A larger size begins anew: its first is kept even if a smaller size did better."""
        if self.standing is None or size_of(self.standing) == evaluation.image_size:
            return "  kept"
        return f"  kept (first at {evaluation.image_size} px)"

    def _keep(self, network: PixelNetwork, moment: Moment, evaluation: Evaluation) -> None:
        training = self._training
        self.best, self.standing = record_of(training, moment, evaluation), rank(evaluation)
        if self._processes.first:
            self.best = save_checkpoint(training.options.run, self.best, network, training.split)


def record_of(training: Training, moment: Moment, evaluation: Evaluation) -> Checkpoint:
    """Of a network at that moment, as it is before its weights are written."""
    return Checkpoint(
        architecture=training.options.arch,
        labels=training.split.labels,
        image=training.spec,
        recipe=training.recipe,
        weights=training.weights,
        seed=training.options.seed,
        epoch=moment.epoch,
        step=moment.step,
        validation=evaluation,
        floor=training.floor,
        data_fingerprint=training.split.fingerprint,
        versions=versions(),
    )


def _line(moment: Moment, evaluation: Evaluation) -> str:
    train_loss = "     " if moment.train_loss is None else f"{moment.train_loss:.3f}"
    return (
        f"epoch {moment.epoch:3d}  {moment.size:3d} px  train loss {train_loss}  "
        f"val loss {evaluation.loss:.3f}  val accuracy {evaluation.accuracy:.1%}"
    )
