"""Which images a step sees, at which size, at which learning rate: known before the first one."""

import math
from collections.abc import Iterator, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from trainer.recipes import Recipe


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One training step: which images, at which size. Steps and epochs count from 1."""

    number: int
    epoch: int
    size: int
    examples: tuple[int, ...]


class Schedule:
    """Of the whole run; `labels`: of the N training images; `steps`: fewer than the recipe's.

    The last batch of an epoch is filled from the epoch's beginning, drawn anew: a batch of one
    would leave BatchNorm nothing to average.
    """

    def __init__(
        self, recipe: Recipe, labels: Sequence[int], seed: int, steps: int | None = None
    ) -> None:
        self._recipe, self._labels, self._seed = recipe, labels, seed
        self._per_epoch = -(-len(labels) // recipe.step_images)
        self.steps = recipe.epochs * self._per_epoch if steps is None else steps
        ends = np.cumsum([share for _, share in recipe.stages])
        middles = (np.arange(self.steps) + 0.5) / max(1, self.steps) * ends[-1]
        sides = np.array([side for side, _ in recipe.stages])
        self._sizes = sides[np.searchsorted(ends, middles)]
        self._sizes[-1:] = sides[-1]  # a short run too ends at the size that is served
        self._pixels = np.cumsum(self._sizes.astype(np.int64) ** 2)

    def size(self, step: int) -> int:
        return int(self._sizes[step - 1])

    def epoch(self, step: int) -> int:
        return -(-step // self._per_epoch)

    def sizes(self) -> dict[int, int]:
        """Image side to number of steps."""
        sides, counts = np.unique(self._sizes, return_counts=True)
        return dict(zip(sides.tolist(), counts.tolist(), strict=True))

    def pixels(self, step: int) -> int:
        """Pixels of one image at each of the steps up to this one: what work is counted in."""
        return int(self._pixels[step - 1]) if step else 0

    def learning_rate_share(self, step: int, time_share: float = 0.0) -> float:
        """Share of the peak rate: linear warm-up over steps, times a cosine over the work done.

        Counting pixels leaves the early, cheap steps on small pictures a high rate for longer.
        `time_share`: of a time limit; the cosine follows whichever is further.
        """
        recipe = self._recipe
        warmup = min(1.0, step / max(1.0, recipe.warmup_share * self.steps))
        done = max(self.pixels(step) / self.pixels(self.steps), time_share)
        low = recipe.final_learning_rate_share
        return warmup * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * done)))

    def evaluation_is_due(self, step: int) -> bool:
        """After this step: at the end of every epoch that `eval_steps` divides, and of the run."""
        if step == self.steps:
            return True
        ends_an_epoch = step % self._per_epoch == 0
        return ends_an_epoch and self.epoch(step) % self._recipe.eval_steps == 0

    def evaluations(self) -> int:
        return sum(self.evaluation_is_due(step) for step in range(1, self.steps + 1))

    def after(self, step: int) -> Iterator[Step]:
        """The steps that follow; 0: all of them."""
        order_of = balanced_order if self._recipe.sampler == "balanced" else shuffled_order
        for epoch in range(self.epoch(step + 1), self.epoch(self.steps) + 1):
            order = order_of(self._labels, np.random.default_rng([self._seed, epoch]))
            batches = np.resize(order, (self._per_epoch, self._recipe.step_images))
            first = (epoch - 1) * self._per_epoch + 1
            for number, batch in enumerate(batches, start=first):
                if step < number <= self.steps:
                    yield Step(
                        number=number,
                        epoch=epoch,
                        size=self.size(number),
                        examples=tuple(batch.tolist()),
                    )


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
