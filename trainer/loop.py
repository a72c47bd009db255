"""The training loop, written out: learning rate, step, evaluate, checkpoint, log."""

import math
from collections.abc import Sequence

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from packshot.errors import InvalidInput
from packshot.image import ImageSpec
from trainer.average import Average
from trainer.batches import Step, TrainingViews, plan_steps, served_views, training_batches
from trainer.batchnorm import reestimate_batchnorm
from trainer.cache import PixelCache
from trainer.checkpoint import Checkpoint, save_checkpoint, versions
from trainer.data import Example, Split
from trainer.evaluate import Evaluation, Views, brief, evaluate, rank
from trainer.interrupt import Interrupt
from trainer.log import Log, say
from trainer.model import PixelNetwork, Weights
from trainer.objective import class_weights, mixed
from trainer.optimizer import learning_rate_share, new_optimizer, set_learning_rate
from trainer.probe import Floor
from trainer.recipes import Options, Recipe


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked to do: everything but the network itself."""

    split: Split
    recipe: Recipe
    spec: ImageSpec
    options: Options
    weights: Weights
    cache: PixelCache | None = None
    floor: Floor | None = None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the run at which the network is evaluated. `size`: image side in pixels."""

    epoch: int
    step: int
    size: int
    train_loss: float | None = None


def train(
    network: PixelNetwork,
    training: Training,
    log: Log,
    interrupt: Interrupt,
    best: Checkpoint | None = None,
) -> Checkpoint | None:
    """Trains and keeps the best checkpoint in the run folder; returns it, or None if there is none.

    `best`: one that is there already, to be replaced by better ones only.
    The best is the one with the highest macro-F1, then the lowest loss, on validation images at the
    largest size reached: figures at different sizes do not compare.
    """
    split, recipe, options = training.split, training.recipe, training.options
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)
    network.freeze(recipe.frozen_stages, batchnorm=recipe.frozen_batchnorm)
    optimizer = new_optimizer(network, recipe)
    validation = Views.of(split, split.val, training.spec)
    steps = plan_steps(recipe, split.train_labels, options.seed)
    pixels_done = np.cumsum([step.size**2 for step in steps])
    views = TrainingViews(split, recipe, training.spec, options.seed, training.cache)
    weight = class_weights(recipe.class_weights, split.train_counts).to(device)
    batches = training_batches(views, steps, options.workers)
    average = Average(network, len(steps)) if recipe.ema else None
    candidate = network if average is None else average.network
    mixing = np.random.default_rng([options.seed, 2])
    bar = tqdm(
        total=int(pixels_done[-1]), unit="px", unit_scale=True, desc=f"training {options.arch}"
    )
    losses: list[float] = []
    network.train()
    for number, (step, (images, labels)) in enumerate(zip(steps, batches, strict=True), start=1):
        progress = pixels_done[number - 1] / pixels_done[-1]
        set_learning_rate(optimizer, learning_rate_share(recipe, number, len(steps), progress))
        images, targets = mixed(
            images.to(device), labels.to(device), recipe, len(split.labels), mixing
        )
        logits, _ = network(images)
        loss = cross_entropy(logits, targets, weight, label_smoothing=recipe.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()
        if average is not None:
            average.update(network)

        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise InvalidInput(f"the loss is {losses[-1]} at step {number}: lower --learning-rate")
        bar.update(step.size**2)
        bar.set_postfix_str(f"loss {losses[-1]:.2f}")
        if interrupt.signal is not None:
            bar.close()
            return best
        if evaluation_is_due(steps, number, recipe):
            moment = Moment(
                epoch=step.epoch, step=number, size=step.size, train_loss=float(np.mean(losses))
            )
            best = keep_best(best, candidate, training, validation, moment, log)
            losses.clear()
    bar.close()
    if recipe.batchnorm_images:
        best = try_batchnorm(best, candidate, training, validation, len(steps), log)
    return best


def try_batchnorm(
    best: Checkpoint | None,
    network: PixelNetwork,
    training: Training,
    validation: Views,
    steps: int,
    log: Log,
) -> Checkpoint | None:
    """Re-estimates BatchNorm's statistics at the size served, and keeps them if that is better."""
    sample = batchnorm_sample(training)
    reestimate_batchnorm(network, served_views(training.split, sample, training.spec))
    say(f"BatchNorm statistics re-estimated on {len(sample)} images")
    moment = Moment(epoch=training.recipe.epochs, step=steps, size=training.spec.crop)
    return keep_best(best, network, training, validation, moment, log)


def keep_best(
    best: Checkpoint | None,
    network: PixelNetwork,
    training: Training,
    validation: Views,
    moment: Moment,
    log: Log,
) -> Checkpoint | None:
    """Evaluates, logs, and writes a checkpoint if it is better than `best`; returns the better."""
    split = training.split
    evaluation = evaluate(network, validation, split.labels, moment.size)
    log.write("evaluation", moment=moment, validation=brief(evaluation))
    kept = best is None or rank(evaluation) > rank(best.validation)
    train_loss = "     " if moment.train_loss is None else f"{moment.train_loss:.3f}"
    say(
        f"epoch {moment.epoch:3d}  {moment.size:3d} px  train loss {train_loss}  "
        f"val loss {evaluation.loss:.3f}  val accuracy {evaluation.accuracy:.1%}"
        f"{'  kept' if kept else ''}"
    )
    if not kept:
        return best
    record = record_of(training, moment, evaluation)
    return save_checkpoint(training.options.run, record, network, split)


def record_of(training: Training, moment: Moment, evaluation: Evaluation) -> Checkpoint:
    """Of a network at that moment, as it is before its weights are written."""
    split = training.split
    return Checkpoint(
        architecture=training.options.arch,
        labels=split.labels,
        image=training.spec,
        recipe=training.recipe,
        weights=training.weights,
        seed=training.options.seed,
        epoch=moment.epoch,
        step=moment.step,
        validation=evaluation,
        floor=training.floor,
        data_fingerprint=split.fingerprint,
        versions=versions(),
    )


def evaluation_is_due(steps: Sequence[Step], number: int, recipe: Recipe) -> bool:
    """After the step of this number: at the end of every epoch that `eval_steps` divides."""
    if number == len(steps):
        return True
    epoch = steps[number - 1].epoch
    return steps[number].epoch != epoch and epoch % recipe.eval_steps == 0


def batchnorm_sample(training: Training) -> list[Example]:
    examples = training.split.train
    count = min(training.recipe.batchnorm_images, len(examples))
    rng = np.random.default_rng([training.options.seed, 1])
    return [examples[i] for i in rng.choice(len(examples), count, replace=False)]
