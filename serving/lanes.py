"""The lanes of an engine: threads that run batches, and a watch on how long they take."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from packshot.image import Pixels
from serving.engines import Answer, Engine
from serving.saturation import Utilisation

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
        self._runs = 0
        self._threads = ThreadPoolExecutor(engine.lanes, thread_name_prefix=f"{engine.name}-lane")

    @property
    def running(self) -> int:
        """Batches in the engine."""
        return len(self._started)

    def longest_run(self) -> float:
        """Seconds that the oldest of the runs in progress has taken so far; 0 without one."""
        begun = list(self._started.values())
        return self._clock() - min(begun) if begun else 0.0

    async def run(self, images: Sequence[Pixels], *, alone: bool) -> Answer:
        """One row a picture, or whatever the engine raises; ServiceFailed is left to the caller."""
        loop = asyncio.get_running_loop()
        self._runs += 1
        number = self._runs
        self._started[number] = self._clock()
        self.utilisation.add(self.engine.lanes if alone else 1)
        work = self._threads.submit(self.engine.run, images, alone=alone)
        # A run has ended when its thread is free, not when its caller has lost interest.
        work.add_done_callback(lambda _: _tell(loop, self._ended, number, alone))
        return await asyncio.wrap_future(work)

    def _ended(self, number: int, alone: bool) -> None:
        del self._started[number]
        self.utilisation.add(-(self.engine.lanes if alone else 1))

    def close(self) -> None:
        """Closes the engine; one that hangs in a run is left alone, as its memory is in use."""
        if self._started:
            log.error(
                "engine %s still runs after %.1f s: left behind",
                self.engine.name, self.longest_run(),
            )  # fmt: skip
            self._threads.shutdown(wait=False, cancel_futures=True)
            return
        self._threads.shutdown()
        self.engine.close()


def _tell(loop: asyncio.AbstractEventLoop, call: Callable[..., None], *arguments: object) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(call, *arguments)
