"""From a folder of the store to a model that serves: hashes, pixels, engine, golden samples."""

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import msgspec

from packshot.bundle import Bundle, open_bundle
from packshot.errors import EngineRefused, PackshotError
from packshot.golden import check_pixels
from serving.engines.open import Opened, Refusal, open_engine
from serving.latency import LatencyModel
from serving.metrics import Metrics
from serving.model import Model
from serving.scheduler import FAILURES_TO_REPLACE, Scheduler
from serving.supply import supply_in

log = logging.getLogger("packshot.loading")


class EngineChoice(msgspec.Struct, frozen=True, kw_only=True):
    """Which engines to try, in order, and how they run."""

    order: tuple[str, ...]
    required: bool = False  # then nothing may take the place of the only one in the order
    lanes: int
    max_batch: int


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
        bundle, opened = await asyncio.to_thread(self._verify, folder)
        return self._start(bundle, opened)

    async def close(self) -> None:
        """Waits for engines that are being opened to replace others."""
        if self._replacing:
            await asyncio.wait(self._replacing)

    def _verify(self, folder: Path) -> tuple[Bundle, Opened]:
        bundle = open_bundle(folder, engines=False)
        manifest = bundle.manifest
        self.supply.check_place(folder, manifest)
        check_pixels(bundle.golden(), manifest.image)
        return bundle, self._open(bundle, self._choice.order)

    def _open(
        self, bundle: Bundle, order: Sequence[str], *, pass_over_damaged: bool = False
    ) -> Opened:
        choice = self._choice
        try:
            return open_engine(
                bundle, order, lanes=choice.lanes, max_batch=choice.max_batch,
                pass_over_damaged=pass_over_damaged,
            )  # fmt: skip
        except EngineRefused as error:
            if choice.required:
                message = f"{error}; by --require nothing may take its place"
                raise EngineRefused(error.reason, message) from error
            raise

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
            opened = await asyncio.to_thread(self._open, model.bundle, rest, pass_over_damaged=True)
        except Exception as error:  # whatever it is: until told, the scheduler answers nobody
            log.critical(
                "%s: no engine can take over, %s goes on: %s", model.name, model.engine, error,
                exc_info=None if isinstance(error, PackshotError) else error,
            )  # fmt: skip
            model.scheduler.carry_on()
            return
        log.critical("%s: engine %s takes over", model.name, opened.engine.name)
        model.take_over(opened, failed)
