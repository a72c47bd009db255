"""The linear probe: a logistic regression on a frozen backbone's features, and what it reaches.

It takes seconds, so it is the floor that fine-tuning must beat; on a CPU it is the result. Its head
is also where training of the last stage starts (linear probing, then fine-tuning: Kumar et al.,
ICLR 2022).
"""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from packshot.intervals import Interval
from trainer.evaluate import Evaluation, rank, score
from trainer.features import Features
from trainer.objective import class_weights
from trainer.recipes import Recipe

# Of the L2 penalty, strongest first: each fit starts where the one before it ended.
STRENGTHS = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ITERATIONS = 100  # of each fit
HISTORY = 10  # steps that L-BFGS remembers: two copies of the head each
ROWS = 8192  # images whose logits are in memory together
CONSTANT = 1e-6  # a feature that deviates less, relative to its mean and to the others, is left out


class Floor(msgspec.Struct, frozen=True, kw_only=True):
    """What a linear head on the frozen backbone reaches on validation images.

    `interval`: Wilson's 95 % interval of the accuracy. `strength`: of the L2 penalty, chosen on the
    same images. `seconds`: for features and fit.
    """

    images: int
    accuracy: float
    interval: Interval
    macro_f1: float
    loss: float
    strength: float
    seconds: float


class Probe(NamedTuple):
    """A fitted head: weight float32 [classes, width] and bias [classes], on the CPU."""

    weight: torch.Tensor
    bias: torch.Tensor
    strength: float
    validation: Evaluation

    def floor(self, seconds: float) -> Floor:
        found = self.validation
        return Floor(
            images=found.images,
            accuracy=found.accuracy,
            interval=found.interval,
            macro_f1=found.macro_f1,
            loss=found.loss,
            strength=self.strength,
            seconds=round(seconds, 1),
        )


def fit_probe(
    train: Features,
    val: Features,
    labels: tuple[str, ...],
    weight: torch.Tensor,
    size: int,
    device: torch.device,
) -> Probe:
    """The best head of a few strengths, by `rank` on the validation images.

    Multinomial logistic regression by full-batch L-BFGS: the mean over the images of the
    cross-entropy, weighted by class (`weight`: float32 [classes]), plus half the strength times the
    weights' squares; the bias is free. Features are standardised and divided by the root of their
    number, so that a strength means the same for every width; the head returned takes them as they
    are. `size`: of the images, in pixels. The same input gives the same head.
    """
    shift, scale = standardisation(torch.from_numpy(train.rows))
    images = ((torch.from_numpy(train.rows) - shift) * scale).to(device)
    truth = torch.from_numpy(train.truth).to(device)
    head = nn.Linear(images.shape[1], len(labels), device=device)
    nn.init.zeros_(head.weight)
    nn.init.zeros_(head.bias)
    best: Probe | None = None
    for strength in tqdm(STRENGTHS, desc="fitting the head", unit="fit", disable=None):
        _minimise(head, images, truth, weight.to(device), strength)
        probe = _folded(head, shift, scale, strength, val, labels, size)
        if best is None or rank(probe.validation) > rank(best.validation):
            best = probe
    assert best is not None
    return best


def head_weights(recipe: Recipe, counts: Sequence[int]) -> torch.Tensor:
    """Of each class, float32 [classes]. All images count at once here: a balanced sampler, which
    shows each class equally often, becomes the weights that give each class the same say."""
    return class_weights(
        "inverse" if recipe.sampler == "balanced" else recipe.class_weights, counts
    )


def standardisation(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What to take from features float32 [N, width], then what to multiply by: both [width]."""
    deviation, mean = torch.std_mean(rows, dim=0, correction=0)
    varies = deviation > CONSTANT * (mean.abs() + deviation.max())
    scale = torch.where(varies, 1 / deviation, 0.0) / rows.shape[1] ** 0.5
    return mean, scale


def _minimise(
    head: nn.Linear,
    images: torch.Tensor,
    truth: torch.Tensor,
    weight: torch.Tensor,
    strength: float,
) -> None:
    """Fits the head from where it is."""
    optimizer = torch.optim.LBFGS(
        head.parameters(),
        max_iter=ITERATIONS,
        history_size=HISTORY,
        tolerance_grad=1e-5,
        tolerance_change=1e-9,
        line_search_fn="strong_wolfe",
    )

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        total = strength / 2 * head.weight.square().sum()
        total.backward()
        for some, labels in zip(images.split(ROWS), truth.split(ROWS), strict=True):
            part = cross_entropy(head(some), labels, weight, reduction="sum") / len(images)
            part.backward()
            total = total.detach() + part.detach()
        return total

    optimizer.step(loss)


@torch.inference_mode()
def _folded(
    head: nn.Linear,
    shift: torch.Tensor,
    scale: torch.Tensor,
    strength: float,
    val: Features,
    labels: tuple[str, ...],
    size: int,
) -> Probe:
    """The head for features as they are: standardisation put into weight and bias."""
    weight = head.weight.cpu() * scale
    bias = head.bias.cpu() - weight @ shift
    logits = torch.from_numpy(val.rows) @ weight.T + bias
    return Probe(weight, bias, strength, score(np.asarray(logits), val.truth, labels, size))
