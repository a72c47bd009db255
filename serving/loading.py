"""From a folder of the store to a model that serves, and to another engine if its own fails."""

import asyncio
import logging
from pathlib import Path

import msgspec

from packshot.bundle import Bundle
from packshot.errors import PackshotError
from serving.engines.open import Opened, Refusal
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.model import Model
from serving.scheduler import FAILURES_TO_REPLACE, Scheduler
from serving.supply import supply_in
from serving.version import EngineChoice, open_chosen, open_version

log = logging.getLogger("packshot.loading")


class Room(msgspec.Struct, frozen=True, kw_only=True):
    """What each model's queue may hold."""

    max_images: int
    max_bytes: int


class Loader:
    """Loads models from a folder, a store as a rule; the slow part runs in a thread."""

    def __init__(self, folder: Path, choice: EngineChoice, room: Room, metrics: Metrics) -> None:
        self.supply = supply_in(folder)
        self._choice = choice
        self._room = room
        self._metrics = metrics
        self._replacing: set[asyncio.Task[None]] = set()

    def choose(self, name: str) -> Path:
        """Folder of the version to serve. Raises NotFound or DamagedFile."""
        return self.supply.choose(name)

    async def load(self, folder: Path) -> Model:
        """Raises NotFound, DamagedFile, AnswersDiffer or EngineRefused."""
        log.info("loading %s", folder)
        bundle, opened = await asyncio.to_thread(open_version, self.supply, folder, self._choice)
        return self._start(bundle, opened)

    async def close(self) -> None:
        """Waits for engines that are being opened to replace others."""
        if self._replacing:
            await asyncio.wait(self._replacing)

    def _start(self, bundle: Bundle, opened: Opened) -> Model:
        metrics = self._metrics.of(bundle.manifest.model)
        scheduler = Scheduler(
            opened.engine,
            LatencyModel(opened.profile),
            max_queued_images=self._room.max_images,
            max_queued_bytes=self._room.max_bytes,
            metrics=metrics,
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
            opened = await asyncio.to_thread(
                open_chosen, model.bundle, self._choice, rest, pass_over_damaged=True
            )
        except Exception as error:  # whatever it is: until told, the scheduler answers nobody
            log.critical(
                "%s: no engine can take over, %s goes on: %s", model.name, model.engine, error,
                exc_info=None if isinstance(error, PackshotError) else error,
            )  # fmt: skip
            model.scheduler.carry_on()
            return
        log.critical("%s: engine %s takes over", model.name, opened.engine.name)
        model.take_over(opened, failed)
