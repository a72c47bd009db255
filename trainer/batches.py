"""Batches: the views of images that the network gets, in training and when it is evaluated."""

import signal
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from packshot.cores import available_cores
from packshot.errors import DamagedFile, ImageError
from packshot.image import ImageSpec, Pixels, load_pixels
from trainer.augment import random_view, training_view
from trainer.cache import PixelCache
from trainer.data import Example, Split
from trainer.processes import Processes
from trainer.recipes import Recipe
from trainer.schedule import Step
from trainer.verify import LIMITS


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
            return random_view(image, size, self._recipe, rng), example.label
        try:
            content = self._split.read(example)
            view = training_view(content, size, self._recipe, self._spec, rng, LIMITS)
        except ImageError as error:
            raise DamagedFile(f"{example.file}: {error}") from error
        return view, example.label


Batch = tuple[torch.Tensor, torch.Tensor]
"""Images uint8 [N, size, size, 3] and labels int64 [N]."""


Key = tuple[int, int, int]


def training_batches(
    views: TrainingViews,
    steps: Iterable[Step],
    workers: int,
    *,
    processes: Processes = Processes(),
    pinned: bool = False,
) -> DataLoader[Batch]:
    """This process's share of each step's batch, in order, made ahead by worker processes.

    An image's view does not depend on how many processes share the work, nor on where a run was
    gone on with.
    """

    def keys() -> Iterator[list[Key]]:
        for step in steps:
            first = (step.number - 1) * len(step.examples)
            draws = enumerate(step.examples, start=first)
            yield list(processes.share([(number, step.size, draw) for draw, number in draws]))

    return DataLoader(
        views,
        batch_sampler=keys(),
        num_workers=workers,
        collate_fn=_collate,
        worker_init_fn=_ignore_interrupt,
        pin_memory=pinned,
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
