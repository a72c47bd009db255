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
        first = self._waiting.first()
        if first is None or (self._cores.free <= 0 and not self._cores.has_turn(first)):
            return None
        if self._waiting.drop_dead(self._latency, self.runs_alone):
            self._cores.wake_blocked()
        first = self._waiting.first()
        if first is None or not self._cores.has_turn(first):
            return None
        waiting, other = len(self._waiting), self._cores.next_elsewhere(first)
        alone = other is None and self.runs_alone(waiting)
        if other is not None:
            waiting = sum(not self._lets_pass(item, other) for item in self._waiting)
        if not self._engine.lanes_share and not alone:
            waiting = self._of_one_class(first, waiting)
        whole = alone or self._engine.lanes_share
        share = waiting if whole else -(-waiting // min(idle_lanes, self._cores.free))
        most = min(share, self._latency.largest)
        # A device takes little longer for a whole batch: there a small one would cost the others.
        if whole:
            items = self._waiting.take(most)
        else:
            items = self._waiting.take_in_time(most, self._latency)
        self._metrics.batch_closed(self._closed_by(len(items), most))
        return Batch(items=items, alone=alone)

    def _lets_pass(self, item: Item, other: Item) -> bool:
        """Whether an image of another model goes before `item`, rather than after the batch."""
        if self._engine.one_by_one:  # nothing is gained by running with others
            return other < item
        return other.urgency[0] < item.urgency[0]

    def _of_one_class(self, first: Item, waiting: int) -> int:
        """Of those that may run; bulk goes one by one while something interactive may come.

        It would wait for a whole batch, or be refused. By itself bulk is a little quicker in
        batches, whose lanes wait less often for the event loop.
        """
        if first.urgency[0] != Priority.INTERACTIVE:
            return 1 if self._cores.interactive_of_late else waiting
        interactive = (item.urgency[0] == Priority.INTERACTIVE for item in self._waiting)
        return min(waiting, sum(interactive))

    def runs_alone(self, images: int) -> bool:
        """On all cores at once: too little to keep the lanes busy, and nothing else runs."""
        # Splitting takes more CPU: where the next is likely to come meanwhile, that is missed.
        if self._company > 0.5 or not self._cores.idle:
            return False
        # Never more than a batch holds: on many cores the engine's bound is the larger one.
        return images <= min(self._engine.largest_alone, self._latency.largest)

    def predict_seconds(self, batch: Batch) -> float:
        run = self._latency.run_seconds(len(batch.items), alone=batch.alone)
        return run + self._latency.decode_seconds(sum(item.encoded for item in batch.items))

    def _closed_by(self, images: int, most: int) -> str:
        """Why a batch has no more images."""
        if not self._waiting:
            return "empty"
        if images < most:
            return "deadline"
        return "full" if images == self._latency.largest else "shared"
