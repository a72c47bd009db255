"""The lanes of an engine: threads that decode and run batches, and how long they take."""

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple, TypeAlias

from packshot.errors import DeadlineExceeded, ImageError, PackshotError, ServiceFailed
from packshot.image import Pixels
from serving.engines import Answer, Engine
from serving.stages import Stage
from serving.threads import Threads

log = logging.getLogger("packshot.lanes")

Picture: TypeAlias = Pixels | Callable[[], Pixels]
"""uint8 [crop, crop, 3], or what decodes it, raising ImageError, or DeadlineExceeded."""


class Outcome(NamedTuple):
    """What became of a batch: one answer or error a picture, and the times that it took.

    `ran` is None if no picture was left to run.
    """

    answers: list[Answer | PackshotError]
    decoded: list[Stage | None]
    ran: Stage | None


class Lanes:
    """Runs batches of one engine. Lives on the event loop; `longest_run` may be asked anywhere."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.idle = 0  # lanes that wait for a batch
        self.failures_in_a_row = 0
        self._clock = clock
        self._started: dict[int, float] = {}  # number of a batch -> when its last step began
        self._left_behind = False
        self._numbers = itertools.count()
        self._threads = Threads(engine.lanes, f"{engine.name}-lane")

    @property
    def running(self) -> int:
        """Batches in the lanes."""
        return len(self._started)

    def longest_run(self) -> float:
        """Seconds that a lane has been in one run, or at one image, so far; 0 if none is busy."""
        begun = list(self._started.values())
        return self._clock() - min(begun) if begun else 0.0

    async def run(self, pictures: Sequence[Picture], *, alone: bool) -> Outcome:
        """Raises whatever the engine raises."""
        number = next(self._numbers)
        self._started[number] = self._clock()
        return await self._threads.run(
            self._in_thread, number, pictures, alone, ended=partial(self._ended, number)
        )

    async def close(self) -> None:
        """Closes the engine; one that hangs in a run only after that, as its memory is in use."""
        self._threads.close()
        if self._started:
            self._left_behind = True
            log.error(
                "engine %s still runs after %.1f s: left behind",
                self.engine.name, self.longest_run(),
            )  # fmt: skip
            return
        await asyncio.to_thread(self.engine.close)

    def _ended(self, number: int) -> None:
        del self._started[number]
        if self._left_behind and not self._started:
            log.warning("engine %s, left behind, has come back: closed", self.engine.name)
            threading.Thread(target=self.engine.close, daemon=True).start()

    def _in_thread(self, number: int, pictures: Sequence[Picture], alone: bool) -> Outcome:
        found = [self._decode(number, picture) for picture in pictures]
        images = [pixels for pixels, _ in found if not isinstance(pixels, PackshotError)]
        if not images:
            errors = [error for error, _ in found if isinstance(error, PackshotError)]
            return Outcome([*errors], [None] * len(found), None)
        self._started[number] = started = self._clock()
        answer = self.engine.run(images, alone=alone)
        ran = Stage("infer", started, self._clock())
        rows = iter(_rows(answer, len(images)))
        return Outcome(
            [pixels if isinstance(pixels, PackshotError) else next(rows) for pixels, _ in found],
            [stage for _, stage in found],
            ran,
        )

    def _decode(self, number: int, picture: Picture) -> tuple[Pixels | PackshotError, Stage | None]:
        if not callable(picture):
            return picture, None
        self._started[number] = started = self._clock()
        try:
            pixels = picture()
        except (ImageError, DeadlineExceeded) as error:
            return error.without_history(), None
        except (
            Exception
        ):  # a fault of ours, or no memory: not the engine's, and not its neighbours'
            log.exception("an image could not be decoded")
            return ServiceFailed("decoding failed"), None
        return pixels, Stage("decode", started, self._clock())


def _rows(answer: Answer, size: int) -> list[Answer]:
    """One answer an image. Raises ValueError if the engine lost some."""
    if len(answer.logits) != size:
        raise ValueError(f"the engine gave {len(answer.logits)} answers to {size} images")
    return [Answer(*row) for row in zip(*answer, strict=True)]
