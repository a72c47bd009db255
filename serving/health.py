"""What probes, balancers and autoscalers are told: alive or not, ready or not, how busy."""

from collections.abc import Callable
from typing import Literal

from serving.decoding import DecodePool
from serving.liveness import Liveness
from serving.model import Model
from serving.models import Models

State = Literal["loading", "accepting", "draining"]


class Health:
    """Follows from the state that the server is in, and from its parts; asked from any thread."""

    def __init__(
        self,
        models: Models,
        decoders: DecodePool,
        liveness: Liveness,
        *,
        hang_seconds: float,
    ) -> None:
        self._models = models
        self._decoders = decoders
        self._liveness = liveness
        self._hang_seconds = hang_seconds
        self._state: State = "loading"

    def live(self) -> bool:
        return self.why_not_live() is None

    def ready(self) -> bool:
        return self.why_not_ready() is None

    def why_not_live(self) -> str | None:
        """Why the process should be restarted, in one line; None if it should not."""
        return self._liveness.reason()

    def why_not_ready(self) -> str | None:
        """Why no request should come here, in one line."""
        if self._state != "accepting":
            return self._state
        reasons = (model.why_not_ready(self._hang_seconds) for model in self._models)
        return next((reason for reason in reasons if reason), None)

    def model_ready(self, find: Callable[[], Model]) -> bool:
        """Of one, whatever the others are like. Raises what `find` raises, once all are loaded."""
        if self._state != "accepting":
            return False
        return find().why_not_ready(self._hang_seconds) is None

    def saturation(self) -> float:
        """Models on a CPU share its cores; of those on a device, what each takes adds up."""
        cores = {model.scheduler.cores for model in self._models}
        busy = sum(one.utilisation.share() for one in cores)
        return min(1.0, max(busy, self._decoders.utilisation.share()))

    def enter(self, state: State) -> None:
        """The server is in this state from now on."""
        self._state = state
