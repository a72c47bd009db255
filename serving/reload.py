"""Follows the store: another version is loaded beside the one that serves, proved, and swapped in.

Requests that were let in are answered by the version that let them in. A version that does not pass
stays out, and the old one goes on.
"""

import asyncio
import logging
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

from packshot import errors
from packshot.errors import NotFound, PackshotError
from serving.loading import Loader
from serving.metrics import Metrics
from serving.models import Models

log = logging.getLogger("packshot.reload")

REASONS: dict[type[Exception], str] = {
    errors.NotFound: "not_found",
    errors.DamagedFile: "damaged",
    errors.AnswersDiffer: "answers_differ",
    errors.EngineRefused: "no_engine",
}


Content: TypeAlias = frozenset[tuple[str, int, int]]
"""Name, size and time of change of each file."""


class Reloader:
    """Loads what is to be served, then looks at the store every `seconds`, and at once on SIGHUP.

    `names`: the models to serve; without any, every model of the store, also those to come.
    """

    def __init__(
        self,
        models: Models,
        loader: Loader,
        metrics: Metrics,
        *,
        names: Sequence[str],
        default: str | None,
        seconds: float,
    ) -> None:
        self._models = models
        self._loader = loader
        self._metrics = metrics
        self._names = tuple(names)
        self._default = default
        self._seconds = seconds
        self._asked = asyncio.Event()
        self._rejected: dict[Path, Content] = {}
        self._running: asyncio.Task[None] | None = None

    async def load_all(self) -> None:
        """The first version of each. Raises PackshotError if one that was asked for fails."""
        # Before the slow part: without a handler the signal ends the process.
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._asked.set)
        supply = self._loader.supply
        names = self._names or supply.names()
        if not names:
            raise NotFound(f"no model in {supply.folder}: run `make export`")
        if self._default is not None:
            self._loader.choose(self._default)  # it must be there, whatever else is
        self._models.default = self._default or _only(names, asked=self._names)
        self._models.loading = set(names)
        for name in names:
            wanted = name in self._names or name == self._models.default
            folder = supply.released(name)
            try:
                folder = self._loader.choose(name)
                self._models.put(await self._loader.load(folder))
            except Exception as error:  # whatever is wrong with one that nobody asked for
                if wanted:
                    raise
                self._reject(name, folder, error, _content(folder))
            finally:
                self._models.loading.discard(name)
        if not self._models.names:
            raise NotFound(f"none of the models in {supply.folder} can be served: see above")

    def start(self) -> None:
        """Once the first versions serve."""
        self._running = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait({self._running})

    async def _follow(self) -> None:
        while True:
            try:
                await asyncio.wait_for(self._asked.wait(), self._seconds or None)
                self._rejected.clear()  # on SIGHUP even a version that failed is tried again
            except TimeoutError:
                pass
            self._asked.clear()
            try:
                for name in await self._present():
                    await self._look(name)
            except Exception:  # without it, no version would ever be found again, and nobody told
                log.exception("the store could not be looked through")

    async def _present(self) -> list[str]:
        try:
            found = await asyncio.to_thread(self._loader.supply.names)
        except (PackshotError, OSError) as error:
            log.error("the store cannot be read: %s", error)
            return []
        return list(self._names) or sorted({*found, *self._models.names})

    async def _look(self, name: str) -> None:
        released = self._loader.supply.released(name)
        try:
            folder = await asyncio.to_thread(self._loader.choose, name)
        except Exception as error:  # a `released` that no release wrote, say
            self._reject(name, released, error)
            return
        self._forgive(name, released)
        for gone in [path for path in self._rejected if path.parent.name == name]:
            if not gone.exists():
                self._forgive(name, gone)
        model = self._models.serving(name)
        if model is not None and folder == model.bundle.folder:
            return
        content = await asyncio.to_thread(_content, folder)
        if self._rejected.get(folder) == content:
            return
        try:
            successor = await self._loader.load(folder)
        except Exception as error:  # a fault in a new version must not end the old one
            self._reject(name, folder, error, content)
            return
        self._models.put(successor)
        self._models.rejected.pop(name, None)
        self._rejected = {
            path: content for path, content in self._rejected.items() if path.parent.name != name
        }
        self._metrics.of(name).reloaded("swapped")

    def _forgive(self, name: str, folder: Path) -> None:
        self._rejected.pop(folder, None)
        self._models.rejected.get(name, {}).pop(folder.name, None)

    def _reject(
        self, name: str, folder: Path, error: Exception, content: Content = frozenset()
    ) -> None:
        """Told once, until there is something else in the folder: it may have been half a copy."""
        if self._rejected.get(folder) == content:
            return
        self._rejected[folder] = content
        reason = REASONS.get(type(error), "failed")
        self._models.rejected.setdefault(name, {})[folder.name] = reason
        self._metrics.of(name).reloaded(reason)
        expected = isinstance(error, PackshotError)
        log.error("%s stays out: %s", folder, error, exc_info=None if expected else error)


def _content(folder: Path) -> Content:
    try:
        found = ((path.name, path.stat()) for path in folder.iterdir())
        return frozenset((name, stat.st_size, stat.st_mtime_ns) for name, stat in found)
    except OSError:  # which loading it tells
        return frozenset()


def _only(names: Sequence[str], *, asked: Sequence[str]) -> str | None:
    """The default where none was chosen: the first that was asked for, or the only one there."""
    return names[0] if asked or len(names) == 1 else None
