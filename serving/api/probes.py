"""grpc.health.v1, asked by probes and balancers."""

import logging

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from serving.api.receiving import Context

log = logging.getLogger("packshot.api")

MOST_WATCHES = 32  # fewer than the calls that are allowed beside the classifying ones


class Probes(aio.HealthServicer):
    """The servicer. Nobody needs a token here, and a Watch never ends: all together get so few
    places that there are some for Check, and that those who classify keep theirs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._watches = 0

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: Context) -> None:
        if self._watches >= MOST_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MOST_WATCHES} clients watch the health already: use Check",
            )
        self._watches += 1
        if self._watches == MOST_WATCHES:
            log.warning("%d clients watch the health: no more may, until one ends", MOST_WATCHES)
        try:
            await super().Watch(request, context)
        finally:
            self._watches -= 1
