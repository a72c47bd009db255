"""The training loop, written out: learning rate, step, evaluate, checkpoint, log."""

import json
import math
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from packshot.image import ImageSpec, Pixels
from trainer.calibrate import fit_temperature
from trainer.checkpoint import Checkpoint, load_checkpoint, save_checkpoint, save_record, versions
from trainer.data import (
    Example,
    Split,
    Step,
    TrainingViews,
    plan_steps,
    served_views,
    training_batches,
)
from trainer.evaluate import EVALUATION_BATCH, Evaluation, predict, resized, score
from trainer.model import PixelNetwork
from trainer.recipes import Options, Recipe


class Interrupt:
    """Ctrl-C and SIGTERM, noticed between two steps. A second one ends the process at once."""

    def __init__(self) -> None:
        self.signal: int | None = None
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.signal = number
        signal.signal(number, signal.SIG_DFL)


class Log:
    """One JSON object a line, flushed, so that a run can be followed with `tail -f`."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._started = time.monotonic()

    def write(self, event: str, **facts: object) -> None:
        seconds = round(time.monotonic() - self._started, 1)
        line = {"event": event, "seconds": seconds, **msgspec.to_builtins(facts, enc_hook=str)}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


class Views(msgspec.Struct, frozen=True, kw_only=True):
    """Images as the server would see them, uint8 [N, crop, crop, 3], with their labels [N]."""

    images: Pixels
    truth: np.ndarray

    @classmethod
    def of(cls, split: Split, examples: Sequence[Example], spec: ImageSpec) -> "Views":
        truth = np.array([example.label for example in examples], np.int64)
        return cls(images=served_views(split, examples, spec), truth=truth)


def train(
    network: PixelNetwork,
    split: Split,
    recipe: Recipe,
    spec: ImageSpec,
    options: Options,
    weights_from: str,
    log: Log,
    interrupt: Interrupt,
) -> Checkpoint | None:
    """Trains and keeps the best checkpoint in the run folder; returns it, or None if there is none.

    The best is the one with the highest macro-F1, then the lowest loss, on validation images at the
    largest size reached: figures at different sizes do not compare.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)
    optimizer = new_optimizer(network, recipe)
    validation = Views.of(split, split.val, spec)
    steps = plan_steps(recipe, len(split.train), options.seed)
    done = np.cumsum([step.size**2 for step in steps])
    views = TrainingViews(split, recipe, spec, options.seed)
    bar = tqdm(total=int(done[-1]), unit="px", unit_scale=True, desc=f"training {options.arch}")
    best: Checkpoint | None = None

    def evaluate_and_keep(epoch: int, number: int, size: int, loss: float | None) -> None:
        nonlocal best
        evaluation = evaluate(network, validation, split.labels, size, device)
        log.write("evaluation", epoch=epoch, step=number, train_loss=loss, validation=evaluation)
        kept = best is None or rank(evaluation) > rank(best.validation)
        tqdm.write(
            f"epoch {epoch:3d}  {size:3d} px  train loss {'-----' if loss is None else f'{loss:.3f}'}  val loss {evaluation.loss:.3f}  "
            f"val accuracy {evaluation.accuracy:.1%}{'  kept' if kept else ''}"
        )
        if kept:
            best = save_checkpoint(options.run, record(epoch, number, evaluation), network, split)

    def record(epoch: int, number: int, evaluation: Evaluation) -> Checkpoint:
        return Checkpoint(
            architecture=options.arch, labels=split.labels, image=spec, recipe=recipe,
            weights_from=weights_from, seed=options.seed, epoch=epoch, step=number,
            validation=evaluation, data_fingerprint=split.fingerprint, versions=versions(),
        )  # fmt: skip

    network.train()
    losses: list[float] = []
    batches = training_batches(views, steps, options.workers)
    for number, (step, (images, labels)) in enumerate(zip(steps, batches, strict=True), start=1):
        rate = learning_rate_share(recipe, number, len(steps), done[number - 1] / done[-1])
        set_learning_rate(optimizer, rate)
        logits, _ = network(images.to(device))
        loss = cross_entropy(logits, labels.to(device), label_smoothing=recipe.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), recipe.clip_norm)
        optimizer.step()
        optimizer.zero_grad()

        losses.append(loss.item())
        bar.update(step.size**2)
        bar.set_postfix_str(f"loss {losses[-1]:.2f}")
        if interrupt.signal is not None:
            break
        if number == len(steps) or steps[number].draw != step.draw:
            evaluate_and_keep(step.draw + 1, number, step.size, float(np.mean(losses)))
            losses.clear()
    bar.close()

    if interrupt.signal is None and recipe.batchnorm_images:
        sample = batchnorm_sample(split, recipe, options.seed)
        reestimate_batchnorm(network, served_views(split, sample, spec), device)
        tqdm.write(f"BatchNorm statistics re-estimated on {len(sample)} images at {spec.crop} px")
        evaluate_and_keep(recipe.epochs, len(steps), spec.crop, None)
    return best


def finish(run: Path, split: Split, spec: ImageSpec) -> Checkpoint:
    """Measures the kept checkpoint on the test images, at the size served, and its temperature."""
    kept, network = load_checkpoint(run)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network.to(device, memory_format=torch.channels_last)
    validation = Views.of(split, split.val, spec)
    logits = predict(network, validation.images, device)
    test = Views.of(split, split.test, spec) if split.test else None
    kept = msgspec.structs.replace(
        kept,
        validation=score(logits, validation.truth, split.labels, spec.crop),
        temperature=fit_temperature(logits, validation.truth),
        test=evaluate(network, test, split.labels, spec.crop, device) if test else None,
    )
    save_record(run, kept)
    return kept


def new_optimizer(network: PixelNetwork, recipe: Recipe) -> torch.optim.Optimizer:
    """AdamW; no weight decay on biases and BatchNorm, a rate of its own for the new head."""
    groups = []
    for part, factor in ((network.backbone, 1.0), (network.head, recipe.head_learning_rate_factor)):
        for matrices, decay in ((True, recipe.weight_decay), (False, 0.0)):
            parameters = [p for p in part.parameters() if (p.ndim > 1) == matrices]
            rate = recipe.learning_rate * factor
            groups.append(
                {"params": parameters, "weight_decay": decay, "lr": rate, "peak_lr": rate}
            )
    return torch.optim.AdamW(groups, fused=True)


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


def evaluate(
    network: nn.Module, views: Views, labels: tuple[str, ...], size: int, device: torch.device
) -> Evaluation:
    logits = predict(network, resized(views.images, size), device)
    return score(logits, views.truth, labels, size)


def rank(evaluation: Evaluation) -> tuple[float, ...]:
    return (evaluation.image_size, evaluation.macro_f1, -evaluation.loss)


def batchnorm_sample(split: Split, recipe: Recipe, seed: int) -> list[Example]:
    count = min(recipe.batchnorm_images, len(split.train))
    chosen = np.random.default_rng([seed, 1]).choice(len(split.train), count, replace=False)
    return [split.train[i] for i in chosen]


def reestimate_batchnorm(network: nn.Module, views: Pixels, device: torch.device) -> None:
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
            network(torch.from_numpy(views[i : i + EVALUATION_BATCH]).to(device))
    for layer in layers:
        layer.momentum = 0.1  # torch's default
