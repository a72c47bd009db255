"""The models of this server, by name, a default among them."""

import asyncio
import logging
from collections.abc import Iterator

from packshot.errors import InvalidInput, NotFound, Unavailable
from serving.model import Model

log = logging.getLogger("packshot.models")


class Models:
    """What serves now. Swapping a model drains the one before it."""

    def __init__(self) -> None:
        self.default: str | None = None
        self.rejected: dict[str, dict[str, str]] = {}  # model -> version that did not pass -> why
        self.loading: set[str] = set()  # names of those to come
        self._serving: dict[str, Model] = {}
        self._draining: set[asyncio.Task[None]] = set()

    def __iter__(self) -> Iterator[Model]:
        return iter(list(self._serving.values()))

    @property
    def names(self) -> list[str]:
        return sorted(self._serving)

    def named(self, name: str) -> Model:
        """The model of that name; empty means the default.

        Raises Unavailable while it is loaded for the first time, NotFound, or InvalidInput if there
        is no default.
        """
        if not self._serving or (name or self.default) in self.loading:
            raise Unavailable("the model is still being loaded: try again")
        if not name and self.default is None:
            raise InvalidInput(f"name one of the models that this server has: {self._listed()}")
        chosen = self._serving.get(name or self.default or "")
        if chosen is None:
            raise NotFound(f"no model {name or self.default!r}; this server has {self._listed()}")
        return chosen

    def serving(self, name: str) -> Model | None:
        return self._serving.get(name)

    def put(self, model: Model) -> None:
        """`model` answers from now on; the one before it answers what it let in, and is closed."""
        old = self._serving.get(model.name)
        self._serving[model.name] = model
        model.start_serving()
        log.info("%s: version %d serves, engine %s", model.name, model.version, model.engine)
        if old is not None:
            drain = asyncio.create_task(old.scheduler.close())
            self._draining.add(drain)
            drain.add_done_callback(self._draining.discard)

    def trouble(self, hang_seconds: float) -> str | None:
        """Why a restart would help, if it would; may be asked from any thread."""
        reasons = (model.trouble(hang_seconds) for model in self)
        return next((reason for reason in reasons if reason), None)

    def being_replaced(self) -> str | None:
        """Which engine is out of service at the moment, if one is; from any thread."""
        out = (model for model in self if model.scheduler.being_replaced)
        return next((f"engine {m.engine} of {m.name} is being replaced" for m in out), None)

    async def close(self, timeout_seconds: float) -> None:
        """Answers what was let in, then closes every engine but one that runs on for so long."""
        closing = [asyncio.create_task(model.scheduler.close(timeout_seconds)) for model in self]
        if everything := {*closing, *self._draining}:
            await asyncio.wait(everything)

    def _listed(self) -> str:
        return ", ".join(self.names)
