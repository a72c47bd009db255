"""What a client gets back: one record an image, and one on what is served."""

from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.errors import InvalidInput
from packshot.prediction import Prediction
from packshot.v1 import classifier_pb2 as pb

_ClassifyReply: TypeAlias = pb.ClassifyResponse | pb.ClassifyStreamResponse


def _nothing() -> npt.NDArray[np.float32]:
    return np.empty(0, np.float32)


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one image: predictions, best first, or an error of its own.

    `abstained`: no label is probable enough, and a person should look.
    """

    name: str
    predictions: tuple[Prediction, ...] = ()
    abstained: bool = False
    error: str | None = None
    reason: str | None = None  # as the API's ImageError, or "unreadable" for a local file
    logits: tuple[float, ...] = ()
    model: str = ""
    version: int = 0
    engine: str = ""

    @property
    def best(self) -> Prediction:
        """Raises InvalidInput if the image could not be used."""
        if self.error is not None:
            raise InvalidInput(f"{self.name}: {self.error}")
        return self.predictions[0]

    @property
    def label(self) -> str:
        return self.best.label

    @property
    def probability(self) -> float:
        return self.best.probability


class Embedding(msgspec.Struct, frozen=True, kw_only=True, eq=False):
    """What the network's last layer sees of one image: float32 [features], empty on `error`."""

    name: str
    embedding: npt.NDArray[np.float32] = msgspec.field(default_factory=_nothing)
    error: str | None = None
    reason: str | None = None
    model: str = ""
    version: int = 0
    engine: str = ""


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server serves.

    `refused`: engine -> why it does not run there. `rejected`: version in the store -> why it does
    not serve. `served_models`: all of them, `default_model` answers who names none ("": nobody).
    Answers abstain below `min_confidence`, unless a request says otherwise. `max_image_bytes`: of a
    file; `max_message_bytes`: of a request; 0 where an older server does not tell.
    """

    model: str
    version: int
    architecture: str
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    engine: str
    refused: dict[str, str]
    accuracy: float | None
    max_images_per_request: int
    max_image_bytes: int
    max_message_bytes: int
    rejected: dict[str, str]
    served_models: tuple[str, ...]
    default_model: str
    min_confidence: float


def result(name: str, answer: pb.ImageResult, reply: _ClassifyReply) -> Result:
    error, reason = _trouble(answer)
    return Result(
        name=name,
        predictions=tuple(
            Prediction(label=p.label, index=p.index, probability=p.probability)
            for p in answer.predictions
        ),
        abstained=answer.abstained,
        error=error,
        reason=reason,
        logits=tuple(answer.logits),
        model=reply.model,
        version=reply.version,
        engine=reply.engine,
    )


def embedding(name: str, answer: pb.EmbedResult, reply: pb.EmbedResponse) -> Embedding:
    error, reason = _trouble(answer)
    return Embedding(
        name=name,
        embedding=np.array(answer.embedding, np.float32),
        error=error,
        reason=reason,
        model=reply.model,
        version=reply.version,
        engine=reply.engine,
    )


def model_info(reply: pb.GetModelResponse) -> ModelInfo:
    return ModelInfo(
        model=reply.model,
        version=reply.version,
        architecture=reply.architecture,
        labels=tuple(reply.labels),
        input_shape=tuple(reply.input_shape),
        engine=reply.engine,
        refused={r.engine: f"{r.reason}: {r.message}" for r in reply.refused_engines},
        accuracy=reply.accuracy if reply.HasField("accuracy") else None,
        max_images_per_request=reply.max_images_per_request,
        max_image_bytes=reply.max_image_bytes,
        max_message_bytes=reply.max_message_bytes,
        rejected={r.version: r.reason for r in reply.rejected_versions},
        served_models=tuple(reply.served_models),
        default_model=reply.default_model,
        min_confidence=reply.min_confidence,
    )


def _trouble(answer: pb.ImageResult | pb.EmbedResult) -> tuple[str | None, str | None]:
    if not answer.HasField("error"):
        return None, None
    return answer.error.message, answer.error.reason
