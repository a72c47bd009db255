"""How a run is going: losses and speed since the last evaluation, and the patience left."""

import math
import time
from collections.abc import Callable

import msgspec
import torch

from packshot.errors import InvalidInput

Clock = Callable[[], float]
"""Seconds since some moment."""

LEAST_GAIN = 0.001  # of macro-F1: less is no progress
READ_EVERY = 10  # steps: to read a loss is to wait for the GPU


class TimeLimit(msgspec.Struct, frozen=True, kw_only=True):
    """`seconds` from `started` on; endless unless given."""

    seconds: float = math.inf
    started: float = 0.0
    clock: Clock = time.monotonic

    @property
    def ends(self) -> bool:
        return not math.isinf(self.seconds)

    @property
    def share(self) -> float:
        """Of the limit that has passed, 0 to 1; 0 where there is none."""
        if not self.ends:
            return 0.0
        return min(1.0, (self.clock() - self.started) / self.seconds)


class Moment(msgspec.Struct, frozen=True, kw_only=True):
    """A point of the run at which the network is evaluated. `size`: image side in pixels.

    Loss, speed and share of the peak learning rate are those of the steps since the last one.
    """

    epoch: int
    step: int
    size: int
    train_loss: float | None = None
    images_per_second: float | None = None
    learning_rate: float | None = None


class Patience(msgspec.Struct, frozen=True, kw_only=True):
    """Evaluations in a row that brought nothing, `stale` of them, since macro-F1 was `best`."""

    best: float = 0.0
    stale: int = 0

    def after(self, macro_f1: float) -> "Patience":
        if macro_f1 >= self.best + LEAST_GAIN:
            return Patience(best=macro_f1)
        return Patience(best=self.best, stale=self.stale + 1)


class Losses:
    """Training losses since the last evaluation, read from the device a few at a time."""

    def __init__(self, read: tuple[float, ...] = ()) -> None:
        self._read, self._unread = list(read), list[torch.Tensor]()

    def add(self, loss: torch.Tensor, step: int) -> None:
        """Raises InvalidInput if one of the last losses was no number."""
        self._unread.append(loss)
        if len(self._unread) == READ_EVERY or loss.device.type == "cpu":
            self._settle(step)

    def _settle(self, step: int) -> None:
        if not self._unread:
            return
        first = step - len(self._unread) + 1
        values = torch.stack(self._unread).tolist()
        self._unread.clear()
        self._read += values
        for number, value in enumerate(values, start=first):
            if not math.isfinite(value):
                raise InvalidInput(f"the loss is {value} at step {number}: lower --learning-rate")

    def all(self, step: int) -> tuple[float, ...]:
        self._settle(step)
        return tuple(self._read)

    @property
    def last(self) -> float:
        """Of those that were read."""
        return self._read[-1] if self._read else math.nan


class Course:
    """Where the run stands after `step`, but for what is in the learner, and its time limit."""

    def __init__(
        self,
        step: int = 0,
        losses: tuple[float, ...] = (),
        patience: Patience = Patience(),
        limit: TimeLimit = TimeLimit(),
    ) -> None:
        self.step, self.losses, self.patience = step, Losses(losses), patience
        self.limit, self._clock = limit, limit.clock
        self._saved = self._clock()
        self._start_counting()

    def _start_counting(self) -> None:
        self._images, self._since = 0, self._clock()

    def took(self, step: int, loss: torch.Tensor, images: int) -> None:
        """Notes a step over so many images. Raises InvalidInput once a loss is no number."""
        self.step = step
        self.losses.add(loss, step)
        self._images += images

    @property
    def mean_loss(self) -> float:
        """Since the last evaluation. Raises InvalidInput if it is no number."""
        losses = self.losses.all(self.step)
        return sum(losses) / len(losses)

    def moment(self, epoch: int, size: int, learning_rate: float, train_loss: float) -> Moment:
        return Moment(
            epoch=epoch,
            step=self.step,
            size=size,
            train_loss=train_loss,
            images_per_second=self._images / max(self._clock() - self._since, 1e-9),
            learning_rate=learning_rate,
        )

    def evaluated(self, macro_f1: float, *, final_size: bool) -> None:
        """Figures at different sizes do not compare: patience begins at the last one."""
        self.losses = Losses()
        if final_size:
            self.patience = self.patience.after(macro_f1)
        self._start_counting()

    def saving_is_due(self, minutes: float) -> bool:
        """So many minutes after the last time that it was due."""
        due = self._clock() - self._saved >= 60 * minutes
        if due:
            self._saved = self._clock()
        return due
