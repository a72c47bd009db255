"""Batches: which image is trained on when, at which size, and the views that the network gets."""

import itertools
import signal
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from packshot.cores import available_cores
from packshot.errors import DamagedFile, ImageError
from packshot.image import ImageSpec, Pixels, load_pixels
from trainer.augment import random_view, training_view
from trainer.cache import PixelCache
from trainer.data import Example, Split
from trainer.recipes import Recipe
from trainer.verify import LIMITS


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One training step: which images, at which size. Epochs count from 1."""

    epoch: int
    size: int
    examples: tuple[int, ...]


def plan_steps(recipe: Recipe, labels: Sequence[int], seed: int) -> list[Step]:
    """Every step of the run, known from the start; `labels`: of the N training images.

    The last batch of an epoch is filled from the epoch's beginning, drawn anew: a batch of one
    would leave BatchNorm nothing to average.
    """
    per_epoch = -(-len(labels) // recipe.batch_size)
    total = recipe.epochs * per_epoch
    ends = np.cumsum([share for _, share in recipe.stages])
    order_of = balanced_order if recipe.sampler == "balanced" else shuffled_order
    steps: list[Step] = []
    for epoch in range(1, recipe.epochs + 1):
        order = order_of(labels, np.random.default_rng([seed, epoch]))
        batches = np.resize(order, (per_epoch, recipe.batch_size))
        for batch in batches:
            stage = int(np.searchsorted(ends, (len(steps) + 0.5) / total * ends[-1]))
            size = recipe.stages[stage][0]
            steps.append(Step(epoch=epoch, size=size, examples=tuple(batch.tolist())))
    return steps


Order = npt.NDArray[np.int64]


def shuffled_order(labels: Sequence[int], rng: np.random.Generator) -> Order:
    """Each of N images once."""
    return rng.permutation(len(labels))


def balanced_order(labels: Sequence[int], rng: np.random.Generator) -> Order:
    """N images, the same number of each class, one more or less.

    Of a large class an epoch shows a part, drawn anew each time; images of a small one come again
    (class-balanced sampling: Kang et al., 2020).
    """
    classes = rng.permutation(np.unique(labels))
    quotas = np.bincount(np.arange(len(labels)) % len(classes), minlength=len(classes))
    drawn = [
        np.resize(rng.permutation(np.flatnonzero(np.equal(labels, label))), quota)
        for label, quota in zip(classes, quotas, strict=True)
    ]
    return rng.permutation(np.concatenate(drawn))


class TrainingViews(Dataset[tuple[Pixels, int]]):
    """Augmented training images; the key (example, size, draw) fixes every random choice.

    With a cache, files are neither read nor decoded.
    """

    def __init__(
        self,
        split: Split,
        recipe: Recipe,
        spec: ImageSpec,
        seed: int,
        cache: PixelCache | None = None,
    ) -> None:
        self._split, self._recipe, self._spec, self._seed = split, recipe, spec, seed
        self._cache = cache

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Pixels, int]:
        number, size, draw = key
        example = self._split.train[number]
        rng = np.random.default_rng([self._seed, draw, number])
        if self._cache is not None:
            image = Image.fromarray(self._cache[example])
            return random_view(image, size, self._recipe, self._spec, rng), example.label
        try:
            content = self._split.read(example)
            view = training_view(content, size, self._recipe, self._spec, rng, LIMITS)
        except ImageError as error:
            raise DamagedFile(f"{example.file}: {error}") from error
        return view, example.label


Batch = tuple[torch.Tensor, torch.Tensor]
"""Images uint8 [N, size, size, 3] and labels int64 [N]."""


def training_batches(
    views: TrainingViews, steps: Sequence[Step], workers: int
) -> DataLoader[Batch]:
    """The batches of the steps, in order, made ahead by worker processes."""
    draws = itertools.count()
    keys = [[(number, step.size, next(draws)) for number in step.examples] for step in steps]
    return DataLoader(
        views,
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(_worker: int) -> None:
    """Signals often reach the whole process group: the loop decides, and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _collate(samples: list[tuple[Pixels, int]]) -> Batch:
    images = torch.from_numpy(np.stack([image for image, _ in samples]))
    return images, torch.tensor([label for _, label in samples])


def served_views(split: Split, examples: Sequence[Example], spec: ImageSpec) -> Pixels:
    """The pixels that the server would see, uint8 [N, crop, crop, 3]. Raises DamagedFile."""

    def view(example: Example) -> Pixels:
        try:
            return load_pixels(split.read(example), spec, LIMITS)
        except ImageError as error:
            raise DamagedFile(f"{example.file}: {error}") from error

    views = np.empty((len(examples), *spec.shape), np.uint8)
    with ThreadPoolExecutor(available_cores()) as pool:
        for i, pixels in enumerate(pool.map(view, examples)):
            views[i] = pixels
    return views
