"""grpc.health.v1, asked by probes and balancers."""

import asyncio
import logging
from collections.abc import Sequence

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckResponse

from packshot.errors import InvalidInput, PackshotError
from packshot.status import status_code
from serving.api.answering import write
from serving.api.receiving import Context, Receiving
from serving.health import Health

log = logging.getLogger("packshot.api")

MOST_WATCHES = 32  # fewer than the calls that are allowed beside the classifying ones
MESSAGE_SECONDS = 5.0
WATCH_SECONDS = 0.5  # between two looks
MOST_NAME = 256  # characters; a Watch holds it for as long as it lasts


class Probes(health_pb2_grpc.HealthServicer):
    """Answers for "", which is whether the server lives, and for each of `services`, which is
    whether it is ready. Nobody needs a token here, and a Watch never ends: all together get so few
    places that there are some for Check, and that those who classify keep theirs.

    It reads its requests itself, as our own methods do, under the same eye on memory
    (`serving.api.parsing.Registrar`).
    """

    def __init__(self, receiving: Receiving, health: Health, services: Sequence[str]) -> None:
        self._receiving = receiving
        self._health = health
        self._services = services
        self._watches = 0

    async def Check(self, _requests: object, context: Context) -> HealthCheckResponse:
        request = await self._request(context)
        reply = self._reply(request.service)
        if reply.status == HealthCheckResponse.SERVICE_UNKNOWN:
            await context.abort(grpc.StatusCode.NOT_FOUND)
        return reply

    async def Watch(self, _requests: object, context: Context) -> None:
        if self._watches >= MOST_WATCHES:
            await context.abort(
                grpc.StatusCode.RESOURCE_EXHAUSTED,
                f"{MOST_WATCHES} clients watch the health already: use Check",
            )
        self._watches += 1
        if self._watches == MOST_WATCHES:
            log.warning("%d clients watch the health: no more may, until one ends", MOST_WATCHES)
        try:
            request = await self._request(context)
            await self._follow(request.service, context)
        finally:
            self._watches -= 1

    async def _follow(self, service: str, context: Context) -> None:
        """Each by itself: a client that takes no answers holds up its own, and no others."""
        told = None
        while True:
            reply = self._reply(service)
            if reply != told:
                await write(context, reply)
                told = reply
            await asyncio.sleep(WATCH_SECONDS)

    def _reply(self, service: str) -> HealthCheckResponse:
        """What holds at this moment, as on the HTTP port."""
        if service and service not in self._services:
            return HealthCheckResponse(status=HealthCheckResponse.SERVICE_UNKNOWN)
        good = self._health.ready() if service else self._health.live()
        serving, not_serving = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING
        return HealthCheckResponse(status=serving if good else not_serving)

    async def _request(self, context: Context) -> health_pb2.HealthCheckRequest:
        """Raises AbortError for none within some seconds, and what is none."""
        receiving = self._receiving
        try:
            request = await receiving.request(context, small=True, seconds=MESSAGE_SECONDS)
            if len(request.service) > MOST_NAME:
                raise InvalidInput(
                    f"the service's name has {len(request.service)} characters; at most "
                    f"{MOST_NAME} are taken"
                )
        except PackshotError as error:
            code, told = status_code(error), str(error)
        else:
            return request  # type: ignore[no-any-return]
        await context.abort(code, told)
        raise AssertionError("abort raises")
