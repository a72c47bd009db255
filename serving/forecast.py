"""How long an answer will take: what admission goes by."""

from serving.admission import Admission, Urgency
from serving.batching import Batching
from serving.cores import Cores, Sharer
from serving.engines import Engine
from serving.latency import LatencyModel


class Forecast:
    """Of one engine, behind what waits for it and, on shared cores, for others."""

    def __init__(
        self,
        engine: Engine,
        latency: LatencyModel,
        admission: Admission,
        batching: Batching,
        cores: Cores,
        of: Sharer,
    ) -> None:
        """`of`: who has the engine, as `cores` knows it."""
        self._latency = latency
        self._admission = admission
        self._batching = batching
        self._cores = cores
        self._of = of
        # How many images get on at the same time.
        self._lanes = 1 if engine.lanes_share else engine.lanes

    def seconds(self, images: int, urgency: Urgency, decoding: float = 0.0) -> float:
        """Until `images` of that urgency, which a lane decodes in as many seconds, would be run, if
        nothing more urgent comes.
        """
        latency, cores = self._latency, self._cores
        if self._admission.empty and not cores.occupied and self._batching.runs_alone(images):
            return decoding + latency.run_seconds(images, alone=True)
        ahead, decoding_ahead = self._admission.ahead(urgency)
        work = latency.work_seconds(ahead + images) + decoding_ahead + decoding
        # Its own images share the lanes, if nothing else is in them.
        most_a_lane = -(-images // self._lanes)
        own = latency.work_seconds(most_a_lane) + decoding * most_a_lane / images
        elsewhere = cores.seconds_ahead(urgency, of=self._of)
        return max(cores.seconds_until_done(elsewhere + work), own)

    def at_best_seconds(self, images: int, urgency: Urgency) -> float:
        """The same if nothing of this engine waits, and each run takes the least that one ever did:
        whatever experience says, no answer comes sooner.
        """
        elsewhere = self._cores.seconds_ahead(urgency, of=self._of)
        own = self._latency.at_best_seconds(images, self._lanes)
        return self._cores.seconds_until_done(elsewhere) + own

    def seconds_ahead(self, urgency: Urgency) -> float:
        """On one core, for what waits here and goes before something of that urgency."""
        images, decoding = self._admission.ahead(urgency)
        return self._latency.work_seconds(images) + decoding
