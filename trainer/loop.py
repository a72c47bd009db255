"""The training loop, written out: learning rate, step, evaluate, checkpoint, log."""

import json
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot
from tqdm import tqdm

from packshot.errors import InvalidInput
from packshot.image import ImageSpec, Pixels
from trainer.average import Average
from trainer.batches import Step, TrainingViews, plan_steps, served_views, training_batches
from trainer.cache import PixelCache
from trainer.calibrate import fit_temperature
from trainer.checkpoint import (
    Checkpoint,
    load_checkpoint,
    load_split_of,
    save_checkpoint,
    save_record,
    versions,
)
from trainer.data import Example, Split
from trainer.evaluate import EVALUATION_BATCH, Evaluation, predict, resized, score
from trainer.model import PixelNetwork, Weights
from trainer.recipes import ClassWeights, Options, Recipe
from trainer.report import write_report


class Interrupt:
    """Ctrl-C and SIGTERM, noticed between two steps. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        self.signal = number
        for again in (signal.SIGINT, signal.SIGTERM):
            signal.signal(again, signal.SIG_DFL)
        os.write(2, b"\ninterrupted: finishing with the best checkpoint; again to stop at once\n")


class Log:
    """One JSON object a line, flushed, so that a run can be followed with `tail -f`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
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


class Views(msgspec.Struct, frozen=True, kw_only=True):
    """Images as the server would see them, uint8 [N, crop, crop, 3], with their labels [N]."""

    images: Pixels
    truth: np.ndarray

    @classmethod
    def of(cls, split: Split, examples: Sequence[Example], spec: ImageSpec) -> "Views":
        truth = np.array([example.label for example in examples], np.int64)
        return cls(images=served_views(split, examples, spec), truth=truth)


class Training(msgspec.Struct, frozen=True, kw_only=True):
    """What a run was asked to do: everything but the network itself."""

    split: Split
    recipe: Recipe
    spec: ImageSpec
    options: Options
    weights: Weights
    cache: PixelCache | None = None


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the run at which the network is evaluated. `size`: image side in pixels."""

    epoch: int
    step: int
    size: int
    train_loss: float | None = None


def train(
    network: PixelNetwork, training: Training, log: Log, interrupt: Interrupt
) -> Checkpoint | None:
    """Trains and keeps the best checkpoint in the run folder; returns it, or None if there is none.

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
    best: Checkpoint | None = None
    losses: list[float] = []
    network.train()
    for number, (step, (images, labels)) in enumerate(zip(steps, batches, strict=True), start=1):
        progress = pixels_done[number - 1] / pixels_done[-1]
        set_learning_rate(optimizer, learning_rate_share(recipe, number, len(steps), progress))
        images, targets = mixed(images.to(device), labels.to(device), training, mixing)
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
    record = Checkpoint(
        architecture=training.options.arch,
        labels=split.labels,
        image=training.spec,
        recipe=training.recipe,
        weights=training.weights,
        seed=training.options.seed,
        epoch=moment.epoch,
        step=moment.step,
        validation=evaluation,
        data_fingerprint=split.fingerprint,
        versions=versions(),
    )
    return save_checkpoint(training.options.run, record, network, split)


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


def evaluation_is_due(steps: Sequence[Step], number: int, recipe: Recipe) -> bool:
    """After the step of this number: at the end of every epoch that `eval_steps` divides."""
    if number == len(steps):
        return True
    epoch = steps[number - 1].epoch
    return steps[number].epoch != epoch and epoch % recipe.eval_steps == 0


def mixed(
    images: torch.Tensor, labels: torch.Tensor, training: Training, rng: np.random.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mixup (Zhang et al., ICLR 2018): each image laid over the next one, and so its target.

    Images uint8 [N, H, W, 3] and labels [N] to float images and targets [N, classes], or as they
    are without mixup.
    """
    alpha = training.recipe.mixup
    if not alpha:
        return images, labels
    share = float(rng.beta(alpha, alpha))
    targets = one_hot(labels, len(training.split.labels)).float()
    return (
        torch.lerp(images.float().roll(1, 0), images.float(), share),
        torch.lerp(targets.roll(1, 0), targets, share),
    )


def new_optimizer(network: PixelNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; a rate of its own for each stage of the backbone and for the new head.

    No weight decay on biases, normalisation, class token and positions; nothing for what is frozen.
    """
    stages = list(network.stage_parameters())
    parts = [
        (parameters, recipe.stage_decay ** (len(stages) - 1 - i))
        for i, parameters in enumerate(stages)
    ]
    parts.append((list(network.head.named_parameters()), recipe.head_learning_rate_factor))
    groups = []
    for parameters, factor in parts:
        learnt = [(name, p) for name, p in parameters if p.requires_grad]
        for decayed, decay in ((True, recipe.weight_decay), (False, 0.0)):
            rate = recipe.learning_rate * factor
            chosen = [p for name, p in learnt if has_weight_decay(name, p) == decayed]
            groups.append({"params": chosen, "weight_decay": decay, "lr": rate, "peak_lr": rate})
    return torch.optim.AdamW([group for group in groups if group["params"]], fused=True)


def has_weight_decay(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim > 1 and not name.endswith(("class_token", "pos_embedding"))


def class_weights(how: ClassWeights, counts: Sequence[int]) -> torch.Tensor:
    """Of each class in the loss, float32 [classes]; their mean over the images is 1.

    "inverse" gives every class the same say, "sqrt" goes half of the way (Mahajan et al., 2018).
    """
    power = {"none": 0.0, "sqrt": -0.5, "inverse": -1.0}[how]
    images = torch.tensor(counts, dtype=torch.float32)
    raw = images**power
    return raw * images.sum() / (raw * images).sum()


def learning_rate_share(recipe: Recipe, step: int, steps: int, progress: float) -> float:
    """Share of the peak rate: linear warm-up over steps, times a cosine over the pixels trained on.

    Counting pixels leaves the early, cheap steps on small pictures a high rate for longer.
    """
    warmup = min(1.0, step / max(1.0, recipe.warmup_share * steps))
    low = recipe.final_learning_rate_share
    return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def set_learning_rate(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * share


def evaluate(network: PixelNetwork, views: Views, labels: tuple[str, ...], size: int) -> Evaluation:
    logits = predict(network, resized(views.images, size))
    return score(logits, views.truth, labels, size)


def brief(evaluation: Evaluation) -> dict[str, float]:
    """The figures of a log line: the confusion of many classes would make it endless."""
    names = ("images", "image_size", "loss", "accuracy", "macro_f1")
    return {name: getattr(evaluation, name) for name in names}


def rank(evaluation: Evaluation) -> tuple[float, ...]:
    return (evaluation.image_size, evaluation.macro_f1, -evaluation.loss)


def batchnorm_sample(training: Training) -> list[Example]:
    examples = training.split.train
    count = min(training.recipe.batchnorm_images, len(examples))
    rng = np.random.default_rng([training.options.seed, 1])
    return [examples[i] for i in rng.choice(len(examples), count, replace=False)]


def reestimate_batchnorm(network: PixelNetwork, views: Pixels) -> None:
    """Replaces the running statistics by plain averages over `views`, at the size served.

    Statistics gathered on smaller pictures do not hold at a larger size.
    """
    layers = [layer for layer in network.modules() if isinstance(layer, nn.BatchNorm2d)]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain average
    network.train()
    with torch.no_grad():
        for i in range(0, len(views), EVALUATION_BATCH):
            network(torch.from_numpy(views[i : i + EVALUATION_BATCH]).to(network.mean.device))
    for layer in layers:
        layer.momentum = 0.1  # torch's default
