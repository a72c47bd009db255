"""From a folder of the store to a model that serves, and to another engine if its own fails."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import msgspec

from packshot.bundle import Bundle
from packshot.errors import PackshotError
from serving.cores import Cores
from serving.engines.open import EngineChoice, NoEngine, Opened, Refusal, open_engine
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.model import Model
from serving.scheduler import FAILURES_TO_REPLACE, Scheduler
from serving.supply import supply_in
from serving.threads import Threads
from serving.verified import open_version

log = logging.getLogger("packshot.loading")

LOADS = 2  # at once, each of another model
LONG_SECONDS = 120  # seconds on a CPU, perhaps minutes on a GPU

T = TypeVar("T")


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What each model's queue may hold."""

    max_images: int
    max_bytes: int


class Loader:
    """Loads models from a folder, a store as a rule; the slow part runs in a thread."""

    def __init__(self, folder: Path, choice: EngineChoice, room: Room, metrics: Metrics) -> None:
        self.supply = supply_in(folder)
        self._choice = choice
        self._cores = Cores(choice.lanes)
        self._room = room
        self._metrics = metrics
        self._replacing: set[asyncio.Task[None]] = set()
        # Of our own: Python waits for those of its executor before it ends, and loads take long.
        # One more: where all loads hang, an engine that fails is replaced even so.
        self._threads = Threads(LOADS + 1, "load")
        self._opening = 0

    def count(self, names: Sequence[str]) -> int:
        """Of these models or, without any, of those that there are; 1 at least."""
        try:
            return max(1, len(names or self.supply.names()))
        except (PackshotError, OSError):  # told when they are loaded
            return 1

    async def load(self, folder: Path) -> Model:
        """Raises NotFound, DamagedFile, AnswersDiffer, EngineRefused or InvalidInput."""
        log.info("loading %s", folder)
        telling = asyncio.get_running_loop().call_later(
            LONG_SECONDS, log.error, "loading %s takes more than %d s: what else is released of "
            "this model waits for it, and that of all models while %d are being loaded; if it "
            "hangs, restart the server", folder, LONG_SECONDS, LOADS,
        )  # fmt: skip
        try:
            bundle, opened = await self._in_thread(
                partial(open_version, self.supply, folder, self._choice)
            )
        finally:
            telling.cancel()
        return self._start(bundle, opened)

    @property
    def opening(self) -> bool:
        """A thread opens an engine, wanted or not any more."""
        return self._opening > 0

    async def close(self) -> None:
        """Engines that are being opened to replace others are left to their threads."""
        for task in self._replacing:
            task.cancel()
        if self._replacing:
            await asyncio.wait(self._replacing)
        self._threads.close()

    async def _in_thread(self, work: Callable[[], T]) -> T:
        self._opening += 1
        return await self._threads.run(work, ended=self._opened)

    def _opened(self) -> None:
        self._opening -= 1

    def _start(self, bundle: Bundle, opened: Opened) -> Model:
        metrics = self._metrics.of(bundle.manifest.model)
        scheduler = Scheduler(
            opened.engine,
            LatencyModel(opened.profile),
            max_queued_images=self._room.max_images,
            max_queued_bytes=self._room.max_bytes,
            metrics=metrics,
            cores=self._cores,
            on_failing=lambda: self._replace_engine(model),
        )
        model = Model(bundle=bundle, opened=opened, scheduler=scheduler, metrics=metrics)
        return model

    def _replace_engine(self, model: Model) -> None:
        task = asyncio.create_task(self._replace(model))
        self._replacing.add(task)
        task.add_done_callback(self._replacing.discard)

    async def _replace(self, model: Model) -> None:
        """Puts the next engine of the order in the place of one that keeps failing."""
        failed = Refusal(
            engine=model.engine,
            reason="failed",
            message=f"failed {FAILURES_TO_REPLACE} times in a row while it served",
        )
        order = self._choice.order
        rest = order[order.index(model.engine) + 1 :] if model.engine in order else ()
        log.critical("%s: engine %s %s", model.name, failed.engine, failed.message)
        try:
            # No request is answered meanwhile: any engine that is intact will do.
            opened = await self._in_thread(
                partial(open_engine, model.bundle, self._choice, order=rest, pass_over_damaged=True)
            )
        except Exception as error:  # whatever it is: until told, the scheduler answers nobody
            log.critical(
                "%s: no engine can take over, %s goes on: %s", model.name, model.engine, error,
                exc_info=None if isinstance(error, PackshotError) else error,
            )  # fmt: skip
            if isinstance(error, NoEngine):
                model.without_successor(error.refusals)
            model.scheduler.carry_on()
            return
        if model.scheduler.closing:  # another version took its place meanwhile
            log.info("%s: engine %s comes too late", model.name, opened.engine.name)
            await asyncio.to_thread(opened.engine.close)
            return
        log.critical("%s: engine %s takes over", model.name, opened.engine.name)
        model.take_over(opened, failed)
