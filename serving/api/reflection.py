"""gRPC's server reflection, read as our own methods are: under an eye on memory."""

from collections.abc import AsyncIterator, Sequence
from typing import Any

from grpc_reflection.v1alpha.reflection import SERVICE_NAME, aio
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionResponse

from packshot.errors import PackshotError
from packshot.status import status_code
from serving.api.receiving import Context, Receiving

__all__ = ["SERVICE_NAME", "Reflection"]


class Reflection(aio.ReflectionServicer):
    """The servicer."""

    def __init__(self, services: Sequence[str], receiving: Receiving) -> None:
        super().__init__(services)
        self._receiving = receiving

    async def ServerReflectionInfo(  # type: ignore[override]  # it is no coroutine there either
        self, _requests: object, context: Context
    ) -> AsyncIterator[ServerReflectionResponse]:
        messages = self._receiving.messages(context)
        responses: Any = super().ServerReflectionInfo(messages, context)
        try:
            async for response in responses:
                yield response
        except PackshotError as error:
            await context.abort(status_code(error), str(error))
