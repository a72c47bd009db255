"""The models of this server, by name, a default among them."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from packshot.errors import InvalidInput, NotFound, Unavailable
from serving.model import Model

log = logging.getLogger("packshot.models")


Content: TypeAlias = frozenset[tuple[str, int, int, int]]
"""Of each file name, size, when it was written and when anything of it changed, its links too."""


class Attempt(NamedTuple):
    """A folder (or `released`) that is tried, with what is in it.

    `asked`: how often the server had been asked to look at its store.
    """

    place: Path
    content: Content
    asked: int


class Rejected(NamedTuple):
    """What did not pass, and why in one word."""

    attempt: Attempt
    reason: str


class Models:
    """What serves now. Swapping a model drains the one before it."""

    def __init__(self) -> None:
        self.default: str | None = None
        self.rejected: dict[str, dict[str, Rejected]] = {}  # by model and version
        self.loading: set[str] = set()  # names of those to come
        self._serving: dict[str, Model] = {}
        self._draining: dict[Model, asyncio.Task[None]] = {}

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._serving.values()))

    @property
    def names(self) -> list[str]:
        return sorted(self._serving)

    def named(self, name: str) -> Model:
        """The model of that name; empty means the default.

        Raises Unavailable while it is loaded for the first time, or if what the store has of it
        cannot be served here, as another server may serve an earlier version; NotFound, or
        InvalidInput if there is no default.
        """
        if not self._serving or (name or self.default) in self.loading:
            raise Unavailable("the model is still being loaded: try again")
        if not name and self.default is None:
            raise InvalidInput(f"name one of the models that this server has: {self._listed()}")
        asked = name or self.default or ""
        chosen = self._serving.get(asked)
        if chosen is None:
            why_not = self._why_not(asked)
            message = f"no model {asked!r}{why_not}; this server has {self._listed()}"
            raise Unavailable(message) if why_not else NotFound(message)
        return chosen

    def _why_not(self, name: str) -> str:
        """What did not pass of a model that none of serves."""
        tried = self.rejected.get(name, {}).items()
        return "".join(f", as {_in_words(place)} is {one.reason}" for place, one in tried)

    def serving(self, name: str) -> Model | None:
        return self._serving.get(name)

    def put(self, model: Model) -> None:
        """`model` answers from now on; the one before it answers what it let in, and is closed."""
        old = self._serving.get(model.name)
        self._serving[model.name] = model
        model.start_serving()
        log.info("%s: version %d serves, engine %s", model.name, model.version, model.engine)
        if old is not None:
            self._draining[old] = asyncio.create_task(self._drain(old))

    async def _drain(self, old: Model) -> None:
        await old.scheduler.close()
        if not old.scheduler.left_behind:
            del self._draining[old]

    def trouble(self, hang_seconds: float) -> str | None:
        """Why a restart would help, if it would; may be asked from any thread."""
        reasons = (model.trouble(hang_seconds) for model in self)
        return next((reason for reason in reasons if reason), None)

    @property
    def draining(self) -> bool:
        """A version that was replaced still answers, and does not hang."""
        return any(not model.scheduler.left_behind for model in self._draining)

    def idle(self) -> bool:
        """No image is in progress."""
        return not any(model.scheduler.images for model in (*self, *self._draining))

    @property
    def left_behind(self) -> bool:
        """An engine hangs in a thread that cannot be ended."""
        return any(model.scheduler.left_behind for model in (*self, *self._draining))

    async def close(self, hangs_seconds: float) -> None:
        """Answers what was let in, then closes every engine but one that is in a run for so long.

        Versions that were replaced before have had their time: for them it waits no longer.
        """
        closing = [asyncio.create_task(model.scheduler.close(hangs_seconds)) for model in self]
        if closing:
            await asyncio.wait(closing)
        if self._draining:
            await asyncio.wait(self._draining.values(), timeout=hangs_seconds)

    def _listed(self) -> str:
        return ", ".join(self.names)


def _in_words(place: str) -> str:
    """A version's number, or the file that names one."""
    return f"version {place}" if place.isdecimal() else f"`{place}`"
