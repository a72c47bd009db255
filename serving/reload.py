"""Follows the store: another version is loaded beside the one that serves, proved, and swapped in.

Requests that were let in are answered by the version that let them in. A version that does not pass
stays out, and the old one goes on.
"""

import asyncio
import logging
import signal
from pathlib import Path

from packshot import errors
from packshot.errors import PackshotError
from packshot.store import RELEASED
from serving.metrics import Metrics
from serving.model import Model, choose_bundle, start_model, verify
from serving.pipeline import Pipeline
from serving.settings import Settings

log = logging.getLogger("packshot.reload")

REASONS: dict[type[Exception], str] = {
    errors.NotFound: "not_found",
    errors.DamagedFile: "damaged",
    errors.AnswersDiffer: "answers_differ",
    errors.EngineRefused: "no_engine",
}


class Reloader:
    """Looks at the store every `reload_seconds`, and at once on SIGHUP."""

    def __init__(self, pipeline: Pipeline, settings: Settings, metrics: Metrics) -> None:
        self._pipeline = pipeline
        self._settings = settings
        self._metrics = metrics
        self._asked = asyncio.Event()
        self._rejected: set[Path] = set()
        self._draining: set[asyncio.Task[None]] = set()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Once a first version serves."""
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        self._running = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Ends; waits for old versions that are still being drained."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running, *self._draining})

    async def _follow(self) -> None:
        interval = self._settings.reload_seconds or None
        while True:
            try:
                await asyncio.wait_for(self._asked.wait(), interval)
                self._rejected.clear()  # on SIGHUP even a version that failed is tried again
            except TimeoutError:
                pass
            self._asked.clear()
            await self._look()

    async def _look(self) -> None:
        model = self._pipeline.current()
        released = model.folder.parent / RELEASED
        try:
            folder = await asyncio.to_thread(
                choose_bundle, self._settings.models, model.manifest.model
            )
        except PackshotError as error:
            self._reject(released, error)
            return
        self._forgive(released)
        if folder == model.folder or folder in self._rejected:
            return
        try:
            verified = await asyncio.to_thread(verify, folder, self._settings)
        except Exception as error:  # a fault in a new version must not end the old one
            self._reject(folder, error)
            return
        self._swap(model, start_model(verified, self._settings, self._metrics))

    def _swap(self, old: Model, new: Model) -> None:
        self._pipeline.model = new
        self._pipeline.rejected.clear()
        self._rejected.clear()
        self._metrics.reloads.labels("swapped").inc()
        self._metrics.engine_in_use.remove(*old.metric_labels)
        log.info("version %d serves, engine %s", new.manifest.version, new.engine)
        drain = asyncio.create_task(old.scheduler.close())
        self._draining.add(drain)
        drain.add_done_callback(self._draining.discard)

    def _forgive(self, folder: Path) -> None:
        self._rejected.discard(folder)
        self._pipeline.rejected.pop(folder.name, None)

    def _reject(self, folder: Path, error: Exception) -> None:
        if folder in self._rejected:
            return
        self._rejected.add(folder)
        reason = REASONS.get(type(error), "failed")
        self._pipeline.rejected[folder.name] = reason
        self._metrics.reloads.labels(reason).inc()
        expected = isinstance(error, PackshotError)
        log.error("%s stays out: %s", folder, error, exc_info=None if expected else error)
