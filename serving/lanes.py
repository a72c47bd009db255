"""The lanes of an engine: threads that run batches, and a watch on how long they take."""

import itertools
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial

from packshot.image import Pixels
from serving.engines import Answer, Engine
from serving.saturation import Utilisation
from serving.threads import Threads

log = logging.getLogger("packshot.lanes")


class Lanes:
    """Runs batches of one engine. Lives on the event loop; `longest_run` may be asked anywhere."""

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self.engine = engine
        self.idle = 0  # lanes that wait for a batch
        self.failures_in_a_row = 0
        self.utilisation = Utilisation(engine.lanes, clock)
        self._clock = clock
        self._started: dict[int, float] = {}  # number of a run -> when it began
        self._numbers = itertools.count()
        self._threads = Threads(engine.lanes, f"{engine.name}-lane")

    @property
    def running(self) -> int:
        """Batches in the engine."""
        return len(self._started)

    def longest_run(self) -> float:
        """Seconds that the oldest of the runs in progress has taken so far; 0 without one."""
        begun = list(self._started.values())
        return self._clock() - min(begun) if begun else 0.0

    async def run(self, images: Sequence[Pixels], *, alone: bool) -> Answer:
        """One row a picture, or whatever the engine raises."""
        number, width = next(self._numbers), self.engine.lanes if alone else 1
        self._started[number] = self._clock()
        self.utilisation.add(width)
        return await self._threads.run(
            partial(self.engine.run, images, alone=alone),
            ended=partial(self._ended, number, width),
        )

    def _ended(self, number: int, width: int) -> None:
        del self._started[number]
        self.utilisation.add(-width)

    def close(self) -> None:
        """Closes the engine; one that hangs in a run is left alone, as its memory is in use."""
        self._threads.close()
        if self._started:
            log.error(
                "engine %s still runs after %.1f s: left behind",
                self.engine.name, self.longest_run(),
            )  # fmt: skip
            return
        self.engine.close()
