"""Which waiting images run together, and whether in one lane or on all cores."""

from dataclasses import dataclass

from serving.admission import Priority
from serving.cores import Cores
from serving.engines import Engine
from serving.latency import LatencyModel
from serving.metrics import ModelMetrics
from serving.waiting import Item, Waiting

COMPANY_FRESHNESS = 0.1  # about the last ten requests count


@dataclass(kw_only=True, eq=False)
class Batch:
    """Images that run together; `alone`: on all cores, as nothing else runs."""

    items: list[Item]
    alone: bool


class Batching:
    """Forms the batches of one engine from what waits, when its turn has come on the cores."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        waiting: Waiting,
        cores: Cores,
        metrics: ModelMetrics,
    ) -> None:
        self._engine = engine
        self._latency = latency
        self._waiting = waiting
        self._cores = cores
        self._metrics = metrics
        self._company = 0.0  # share of requests, of late, that met others

    def request_came(self, priority: Priority) -> None:
        """To be told before it counts as in progress."""
        if priority is Priority.INTERACTIVE:
            self._cores.interactive_came()
        self._company += COMPANY_FRESHNESS * (self._cores.occupied - self._company)

    def form(self, idle_lanes: int) -> Batch | None:
        """The next batch, for one of so many lanes that wait for one."""
        first = self._next()
        if first is None:
            return None
        other = self._cores.next_elsewhere(first)
        alone = other is None and self.runs_alone(len(self._waiting))
        if alone or self._engine.lanes_share:
            # A device takes little longer for a whole batch: a small one would cost the others.
            most = min(len(self._waiting), self._latency.largest)
            items = self._waiting.take(most)
        else:
            lanes = min(idle_lanes, self._cores.free)
            most = min(-(-self._together(first, other) // lanes), self._latency.largest)
            items = self._waiting.take_in_time(most, self._latency)
        self._metrics.batch_closed(self._closed_by(len(items), most))
        return Batch(items=items, alone=alone)

    def _next(self) -> Item | None:
        """The most urgent image, if it has its turn."""
        first = self._waiting.first()
        if first is None or (self._cores.free <= 0 and not self._cores.has_turn(first)):
            return None
        if self._waiting.drop_dead(self._latency, self.runs_alone):
            self._cores.wake_blocked()
            first = self._waiting.first()
        return first if first is not None and self._cores.has_turn(first) else None

    def _together(self, first: Item, other: Item | None) -> int:
        """How many of those that wait may run with the first, before `other` of another model.

        Bulk goes one by one while something interactive may come: that would wait for a whole
        batch, or be refused. By itself it goes in batches, whose lanes wait less often for the
        event loop.
        """
        priority = first.urgency[0]
        if priority != Priority.INTERACTIVE and self._cores.interactive_of_late:
            return 1
        # Where images run one by one, nothing is gained by going along with others.
        limit = other if self._engine.one_by_one else None
        return sum(
            item.urgency[0] == priority and (limit is None or item < limit)
            for item in self._waiting
        )

    def runs_alone(self, images: int) -> bool:
        """On all cores at once: too little to keep the lanes busy, and nothing else runs."""
        # Splitting takes more CPU: where the next is likely to come meanwhile, that is missed.
        if self._company > 0.5 or not self._cores.idle:
            return False
        # Never more than a batch holds: on many cores the engine's bound is the larger one.
        return images <= min(self._engine.largest_alone, self._latency.largest)

    def predict_seconds(self, batch: Batch) -> float:
        run = self._latency.run_seconds(len(batch.items), alone=batch.alone)
        return run + sum(self._latency.decoding.seconds(item.file_size) for item in batch.items)

    def _closed_by(self, images: int, most: int) -> str:
        """Why a batch has no more images."""
        if not self._waiting:
            return "empty"
        if images < most:
            return "deadline"
        return "full" if images == self._latency.largest else "shared"
