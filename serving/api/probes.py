"""grpc.health.v1, asked by probes and balancers."""

import logging

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import aio

from packshot.errors import InvalidInput, PackshotError
from packshot.status import status_code
from serving.api.receiving import Context, Receiving

log = logging.getLogger("packshot.api")

MOST_WATCHES = 32  # fewer than the calls that are allowed beside the classifying ones
MESSAGE_SECONDS = 5.0
MOST_NAME = 256  # characters; a Watch holds it for as long as it lasts


class Probes(aio.HealthServicer):
    """The servicer. Nobody needs a token here, and a Watch never ends: all together get so few
    places that there are some for Check, and that those who classify keep theirs.

    It reads its requests itself, as our own methods do, under the same eye on memory
    (`serving.api.parsing.Registrar`).
    """

    def __init__(self, receiving: Receiving) -> None:
        super().__init__()
        self._receiving = receiving
        self._watches = 0

    async def Check(self, _requests: object, context: Context) -> health_pb2.HealthCheckResponse:
        return await super().Check(await self._request(context), context)

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
            await super().Watch(await self._request(context), context)
        finally:
            self._watches -= 1

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
