"""A served model: one version of a bundle, the engine that answers for it, and its queue."""

import itertools
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from packshot.bundle import Bundle, Manifest
from serving.engines.open import Opened, Refusal
from serving.latency import LatencyModel
from serving.metrics import ModelMetrics
from serving.scheduler import FAILURES_TO_REPLACE, Scheduler

log = logging.getLogger("packshot.model")

OPENING_SECONDS = 300.0
"""In which a successor is open. It takes seconds on a CPU, perhaps minutes on a GPU."""

_numbers = itertools.count()


@dataclass(eq=False, kw_only=True)
class Model:
    """What answers requests. `opened`: the engine in use, and those refused before it.

    `number`: of its own, as a version can be loaded twice, and be another the second time.
    """

    bundle: Bundle
    opened: Opened
    scheduler: Scheduler
    metrics: ModelMetrics
    number: int = field(default_factory=lambda: next(_numbers))

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    @property
    def name(self) -> str:
        return self.manifest.model

    @property
    def version(self) -> int:
        return self.manifest.version

    @property
    def engine(self) -> str:
        return self.scheduler.engine.name

    def start_serving(self) -> None:
        for refusal in self.opened.refusals:
            self.metrics.engine_refused(refusal.engine, refusal.reason)
        self.metrics.in_use(self.version, self.engine)

    def take_over(self, opened: Opened, failed: Refusal) -> None:
        """Another engine answers instead of one that failed."""
        for refusal in (failed, *opened.refusals):
            self.metrics.engine_refused(refusal.engine, refusal.reason)
        refusals = (*self.opened.refusals, failed, *opened.refusals)
        # It may have been refused before, and been mended since.
        told = tuple(refusal for refusal in refusals if refusal.engine != opened.engine.name)
        self.opened = msgspec.structs.replace(opened, refusals=told)
        self.metrics.taken_over(failed.engine, opened.engine.name)
        self.scheduler.take_over(opened.engine, LatencyModel(opened.profile))
        self.metrics.in_use(self.version, opened.engine.name)

    def without_successor(self, refusals: Sequence[Refusal]) -> None:
        """Its engine fails and goes on, as these could not take over."""
        new = [refusal for refusal in refusals if refusal not in self.opened.refusals]
        for refusal in new:
            self.metrics.engine_refused(refusal.engine, refusal.reason)
        told = (*self.opened.refusals, *new)
        self.opened = msgspec.structs.replace(self.opened, refusals=told)

    def trouble(self, hang_seconds: float) -> str | None:
        """Why a restart would help, if it would; may be asked from any thread."""
        lanes = self.scheduler.lanes
        which = f"engine {self.engine} of {self.name}"
        if (seconds := lanes.longest_run()) > hang_seconds:
            return f"{which} hangs: in one run, or at one image, for {seconds:.0f} s"
        if (seconds := self.scheduler.seconds_replaced) > max(OPENING_SECONDS, hang_seconds):
            return f"{which} failed, and opening another hangs: for {seconds:.0f} s"
        # While a successor is sought, other lanes' failures count too.
        if lanes.failures_in_a_row > FAILURES_TO_REPLACE and not self.scheduler.being_replaced:
            return f"{which} fails and there is no other"
        return None

    def why_not_ready(self, hang_seconds: float) -> str | None:
        """Why no request should come here, in one line; may be asked from any thread."""
        return self.trouble(hang_seconds) or self.being_replaced

    @property
    def being_replaced(self) -> str | None:
        """That its engine is out of service at the moment, if it is; may be asked likewise."""
        if not self.scheduler.being_replaced:
            return None
        return f"engine {self.engine} of {self.name} is being replaced"
