"""Who is under test: asked before the first request, so that a wrong address is told at once."""

import grpc
import msgspec

from packshot.channel import Connection
from packshot.client import Client
from packshot.image import ImageSpec
from packshot.load_plan import LoadPlan
from packshot.services import OPEN_INFERENCE
from packshot.status import error_from_status

ASK_SECONDS = 10.0


class Served(msgspec.Struct, frozen=True, kw_only=True):
    """`crop`: side of the raw pixels that it takes; `version` and `engine` as it names them."""

    model: str
    version: str
    engine: str
    crop: int


def served_by(plan: LoadPlan, connection: Connection) -> Served:
    """Raises a PackshotError where the server or the model is not there, or lets nobody in."""
    ask = _asked_by_open_inference if plan.api == "open-inference" else _asked
    return ask(plan, connection)


def _asked(plan: LoadPlan, connection: Connection) -> Served:
    with Client(
        connection.target,
        tls=connection.tls,
        token=connection.token,
        model=plan.model,
        timeout_seconds=ASK_SECONDS,
    ) as client:
        info = client.model()
    return Served(
        model=info.model, version=str(info.version), engine=info.engine, crop=info.input_shape[0]
    )


def _asked_by_open_inference(plan: LoadPlan, connection: Connection) -> Served:
    from packshot.oip.open_inference_pb2 import ModelMetadataRequest, ModelMetadataResponse

    request = ModelMetadataRequest(name=plan.model)
    with connection.channel(()) as channel:
        ask = channel.unary_unary(
            f"/{OPEN_INFERENCE}/ModelMetadata",
            request_serializer=ModelMetadataRequest.SerializeToString,
            response_deserializer=ModelMetadataResponse.FromString,
        )
        try:
            reply = ask(request, timeout=ASK_SECONDS, metadata=connection.metadata)
        except grpc.RpcError as error:
            raise error_from_status(error.code(), error.details() or "") from None
    pixels = (one.shape for one in reply.inputs if one.datatype == "UINT8" and len(one.shape) == 4)
    sides = [shape[1] for shape in pixels if shape[1] > 0]
    return Served(
        model=reply.name,
        version=",".join(reply.versions),
        engine=reply.platform,
        crop=sides[0] if sides else ImageSpec().crop,
    )
