"""Follows the store: another version is loaded beside the one that serves, proved, and swapped in.

Requests that were let in are answered by the version that let them in. A version that does not pass
stays out, and the old one goes on. While one model takes long to load, the others are followed.
"""

import asyncio
import logging
import math
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from packshot import errors
from packshot.errors import NotFound, PackshotError
from serving.engines.open import NoEngine
from serving.loading import LOADS, Loader
from serving.metrics import Metrics
from serving.model import Model
from serving.models import Attempt, Content, Models, Rejected
from serving.signals import on_signal

log = logging.getLogger("packshot.reload")

REASONS: dict[type[Exception], str] = {
    errors.NotFound: "not_found",
    errors.DamagedFile: "damaged",
    errors.AnswersDiffer: "answers_differ",
    NoEngine: "no_engine",
}

NOTHING: Content = frozenset()
ALONE_SECONDS = 10.0  # for a load that ends in time: two take twice the cores and the memory


class Reloader:
    """Loads what is to be served, then looks at the store every `seconds`, and at once on SIGHUP.

    `names`: the models to serve; without any, every model of the store, also those to come. The
    default is the first of them or, without any, the only one of the store at the start.
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
        self._asked = 0  # times, by SIGHUP, on which even what failed before is tried again
        self._wake = asyncio.Event()
        self._on_disk: dict[str, Content] = {}  # of the versions that serve
        self._unreadable = ""
        self._running: asyncio.Task[None] | None = None
        self._loads: dict[str, asyncio.Task[None]] = {}  # one a model
        self._last_began = -math.inf

    async def load_all(self) -> None:
        """The first version of each. Raises PackshotError if one that was asked for fails."""
        # Before the slow part: what is asked for meanwhile is done after it, not lost.
        on_signal(signal.SIGHUP, self._ask)
        supply = self._loader.supply
        names = self._names or supply.names()
        if not names:
            raise NotFound(f"no model in {supply.folder}: run `make export`")
        if self._default is not None:
            supply.choose(self._default)  # it must be there, whatever else is
        self._models.default = self._default or next(iter(self._names), None)
        self._models.loading = set(names)
        reasons = []
        for name in names:
            wanted = name in self._names or name == self._models.default
            attempt = _attempt(supply.released(name), self._asked)
            try:
                attempt = _attempt(supply.choose(name), self._asked)
                self._put(await self._loader.load(attempt.place), attempt)
            except Exception as error:  # whatever is wrong with one that nobody asked for
                if wanted:
                    raise
                self._reject(name, attempt, error)
                reasons.append(f"{name}: {error}")
            finally:
                self._models.loading.discard(name)
        if not self._models.names:
            raise NotFound(
                f"none of the models in {supply.folder} can be served: {'; '.join(reasons)}"
            )
        # Of the store, loaded or not: requests without a name would get another model's answers.
        if self._models.default is None and len(names) == 1:
            (self._models.default,) = names

    def start(self) -> None:
        """Once the first versions serve."""
        self._running = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        if self._running is None:
            return
        tasks = {self._running, *self._loads.values()}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    def _ask(self) -> None:
        self._asked += 1
        self._wake.set()

    async def _follow(self) -> None:
        while True:
            # wait_for would lose a cancellation that comes together with a SIGHUP (Python 3.11).
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds or None):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self._look_through()
            except Exception:  # without it, no version would ever be found again, and nobody told
                log.exception("the store could not be looked through")

    async def _look_through(self) -> None:
        for name in await self._present():
            await self._may_load()
            if name not in self._loads:
                await self._look(name)

    async def _may_load(self) -> None:
        """Until no load is in progress, or only one that takes long: it may hang."""
        while self._loads:
            left = self._last_began + ALONE_SECONDS - time.monotonic()
            full = len(self._loads) == LOADS
            if left <= 0 and not full:
                return
            await asyncio.wait(
                self._loads.values(),
                timeout=None if full else left,
                return_when=asyncio.FIRST_COMPLETED,
            )

    async def _present(self) -> list[str]:
        try:
            found = await asyncio.to_thread(self._loader.supply.names)
        except (PackshotError, OSError) as error:
            if self._unreadable != str(error):
                self._unreadable = str(error)
                log.error("the store cannot be read, until that is told: %s", error)
            return []
        if self._unreadable:
            self._unreadable = ""
            log.info("the store can be read again")
        present = list(self._names) or sorted({*found, *self._models.names})
        for gone in self._models.rejected.keys() - present:
            del self._models.rejected[gone]
        return present

    async def _look(self, name: str) -> None:
        asked = self._asked  # before the slow part: what is asked for meanwhile is done after it
        released = self._loader.supply.released(name)
        try:
            folder = await asyncio.to_thread(self._loader.supply.choose, name)
        except Exception as error:  # a `released` that no release wrote, say
            attempt = await asyncio.to_thread(_attempt, released, asked)
            if not self._known(name, attempt):
                self._reject(name, attempt, error)
            return
        rejected = self._models.rejected.setdefault(name, {})
        rejected.pop(released.name, None)
        gone = [version for version, one in rejected.items() if not one.attempt.place.exists()]
        for version in gone:
            del rejected[version]
        model = self._models.serving(name)
        attempt = await asyncio.to_thread(_attempt, folder, asked)
        if model is not None and folder == model.bundle.folder:
            self._tell_if_changed(name, attempt)
            rejected.clear()  # what is chosen serves: nobody waits for the others
        elif not self._known(name, attempt):
            self._last_began = time.monotonic()
            self._loads[name] = asyncio.create_task(self._load(name, attempt))

    async def _load(self, name: str, attempt: Attempt) -> None:
        """In a task of its own, as it may take long, or hang."""
        try:
            await self._swap_in(name, await self._loader.load(attempt.place), attempt)
        except Exception as error:  # a fault in a new version must not end the old one
            self._reject(name, attempt, error)
        finally:
            del self._loads[name]
        if self._asked != attempt.asked:  # meanwhile, when this model was passed over
            self._wake.set()

    async def _swap_in(self, name: str, successor: Model, attempt: Attempt) -> None:
        if await self._withdrawn(name, attempt.place):
            log.info("%s is not served: another was released while it was loaded", attempt.place)
            await successor.scheduler.close()
            self._wake.set()
            return
        is_new = self._models.serving(name) is None
        self._put(successor, attempt)
        self._models.rejected.pop(name, None)
        self._metrics.of(name).reloaded("swapped")
        default = self._models.default
        if is_new and default is not None and default != self._default:
            log.warning(
                "%s serves beside %s, which answers requests that name no model until a restart: "
                "give --default-model",
                name, default,
            )  # fmt: skip

    async def _withdrawn(self, name: str, folder: Path) -> bool:
        with suppress(PackshotError, OSError):  # told when it is looked at next
            return await asyncio.to_thread(self._loader.supply.choose, name) != folder
        return False

    def _put(self, model: Model, attempt: Attempt) -> None:
        self._on_disk[model.name] = attempt.content
        self._models.put(model)

    def _tell_if_changed(self, name: str, served: Attempt) -> None:
        """Once. A server that starts anew would answer otherwise, under the same number."""
        content = served.content
        if content and _written(content) != _written(self._on_disk[name]):
            self._on_disk[name] = content
            log.warning(
                "%s was changed on disk, which is served as it was: add a version instead",
                served.place,
            )

    def _known(self, name: str, attempt: Attempt) -> bool:
        """Rejected before, with the same in it: a folder may have been half a copy then."""
        before = self._models.rejected.get(name, {}).get(attempt.place.name)
        return before is not None and before.attempt == attempt

    def _reject(self, name: str, attempt: Attempt, error: Exception) -> None:
        reason = REASONS.get(type(error), "failed")
        if isinstance(error, NoEngine):
            if error.reason == "answers_differ":
                reason = "answers_differ"
            for refusal in error.refusals:
                self._metrics.of(name).engine_refused(refusal.engine, refusal.reason)
        known = self._models.rejected.setdefault(name, {})
        known[attempt.place.name] = Rejected(attempt, reason)
        self._metrics.of(name).reloaded(reason)
        expected = isinstance(error, PackshotError)
        log.error("%s stays out: %s", attempt.place, error, exc_info=None if expected else error)


def _attempt(place: Path, asked: int) -> Attempt:
    return Attempt(place, _content(place), asked)


def _content(place: Path) -> Content:
    """Of a folder or a file."""
    try:
        files = list(place.iterdir()) if place.is_dir() else [place]
        found = ((path.name, path.stat()) for path in files)
        return frozenset(
            (name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in found
        )
    except OSError:  # which loading it tells
        return NOTHING


def _written(content: Content) -> set[tuple[str, int, int]]:
    """Without what changes when another version comes or goes that shares files by hard link."""
    return {(name, size, written) for name, size, written, _ in content}
