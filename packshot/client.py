"""The client: files, bytes or arrays in, ranked labels out.

with Client("127.0.0.1:8001") as client:
    for result in client.classify(["mug.jpg", "shoe.png"]):
        print(result.name, result.label, result.probability)
"""

import json
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self, TypeAlias

import grpc
import msgspec
import numpy as np
import numpy.typing as npt

from packshot.channel import Connection, Tls
from packshot.errors import DeadlineExceeded, InvalidInput, PackshotError
from packshot.prediction import Prediction
from packshot.status import error_from_status
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

ImageSource = str | Path | bytes | npt.NDArray[np.uint8]
"""A path, an encoded file's bytes, or pixels: RGB, uint8, of the shape that `model()` tells."""

_IMAGE_TYPES = (str, Path, bytes, np.ndarray)
_Call: TypeAlias = "grpc.Future[pb.ClassifyResponse]"

DEFAULT_TARGET = "127.0.0.1:8001"
MAX_TOP_K = 1_000_000
MAX_REQUEST_BYTES = 32 * 1024 * 1024
MAX_MESSAGE_BYTES = 64 * 1024 * 1024

# Classifying twice does no harm, so a refusal for overload or a restarting server is retried, later
# if the server's pushback says so, and not at all when most requests fail (retryThrottling).
SERVICE_CONFIG = {
    "methodConfig": [
        {
            "name": [{"service": "packshot.v1.Classifier"}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # gRPC retries only what fits into this buffer; its default would leave out most photographs.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one image: predictions, best first, or an error of its own."""

    name: str
    predictions: tuple[Prediction, ...] = ()
    error: str | None = None
    reason: str | None = None  # packshot.errors.ImageReason, or "unreadable" for a local file
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


class ModelInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a server serves.

    `refused`: engine -> why it does not run there. `rejected`: version in the store -> why it does
    not serve.
    """

    model: str
    version: int
    architecture: str
    labels: tuple[str, ...]
    input_shape: tuple[int, ...]
    engine: str
    refused: dict[str, str]
    accuracy: float
    max_images_per_request: int
    rejected: dict[str, str]


class _Loaded(msgspec.Struct, frozen=True, kw_only=True):
    """One image read and ready to send, or the reason why it is not."""

    name: str
    message: pb.Image | None = None
    error: str | None = None

    @property
    def size(self) -> int:
        return self.message.ByteSize() if self.message is not None else 0


class Client:
    """A connection to one server. Safe to share between threads; close it or use it in `with`."""

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: Tls | bool = False,
        token: str | None = None,
        model: str = "",
        timeout_seconds: float = 30.0,
        bulk: bool = False,
        images_per_request: int = 8,
        requests_in_flight: int = 4,
    ) -> None:
        """`timeout_seconds` is the deadline of each request, which the server sees and heeds.

        `tls` is True for the usual authorities, or says which; `token` is sent with every call, in
        plain text only to this machine. `bulk` requests run when no others wait, and are refused
        first when there is too much.
        """
        if timeout_seconds <= 0:
            raise InvalidInput(f"timeout_seconds is {timeout_seconds}; it must be above 0")
        if images_per_request < 1 or requests_in_flight < 1:
            raise InvalidInput("images_per_request and requests_in_flight must be at least 1")
        self.target = target
        self._model = model
        self._timeout_seconds = timeout_seconds
        self._priority = pb.PRIORITY_BULK if bulk else pb.PRIORITY_INTERACTIVE
        self._images_per_request = images_per_request
        self._server_limit: int | None = None
        self._requests_in_flight = requests_in_flight
        self._connection = Connection(target=target, tls=tls, token=token)
        self._channel = self._connection.channel(CHANNEL_OPTIONS)
        self._stub = ClassifierStub(self._channel)

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        top_k: int = 5,
        include_logits: bool = False,
    ) -> list[Result]:
        """Classifies one image or many; one result per image, in order. `top_k` 0 means 5.

        An image that cannot be used gets a result with `error`. Raises PackshotError if the service
        cannot answer: InvalidInput, Unauthenticated, NotFound, Overloaded, DeadlineExceeded,
        Unavailable, ServiceFailed.
        """
        one = isinstance(images, _IMAGE_TYPES)
        sources: Iterable[ImageSource] = [images] if one else images  # type: ignore[list-item,assignment]  # `one` tells which
        return list(self.stream(sources, top_k=top_k, include_logits=include_logits))

    def stream(
        self, images: Iterable[ImageSource], *, top_k: int = 5, include_logits: bool = False
    ) -> Iterator[Result]:
        """Like `classify`, yielding each result as soon as it and those before it are there.

        Images are read as they are needed: a folder of any size fits.
        """
        if not 0 <= top_k <= MAX_TOP_K:
            raise InvalidInput(f"top_k is {top_k}; it must be from 0 to {MAX_TOP_K}")
        waiting: deque[tuple[list[_Loaded], _Call | None]] = deque()
        try:
            for group in self._groups(images):
                waiting.append((group, self._send(group, top_k, include_logits)))
                if len(waiting) >= self._requests_in_flight:
                    yield from self._results(*waiting.popleft())
            while waiting:
                yield from self._results(*waiting.popleft())
        finally:
            for _, call in waiting:
                if call is not None:
                    call.cancel()

    def model(self) -> ModelInfo:
        """What the server serves, by which engine. Raises PackshotError."""
        try:
            reply = self._stub.GetModel(
                pb.GetModelRequest(model=self._model),
                timeout=self._timeout_seconds,
                metadata=self._connection.metadata,
            )
        except grpc.RpcError as error:
            raise self._translated(error) from error
        return ModelInfo(
            model=reply.model,
            version=reply.version,
            architecture=reply.architecture,
            labels=tuple(reply.labels),
            input_shape=tuple(reply.input_shape),
            engine=reply.engine,
            refused={r.engine: f"{r.reason}: {r.message}" for r in reply.refused_engines},
            accuracy=reply.accuracy,
            max_images_per_request=reply.max_images_per_request,
            rejected={r.version: r.reason for r in reply.rejected_versions},
        )

    def close(self) -> None:
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _groups(self, images: Iterable[ImageSource]) -> Iterator[list[_Loaded]]:
        group: list[_Loaded] = []
        size = 0
        for number, image in enumerate(images, start=1):
            loaded = _load(image, number)
            too_big = size + loaded.size > MAX_REQUEST_BYTES
            if group and (too_big or len(group) >= self._group_limit()):
                yield group
                group, size = [], 0
            group.append(loaded)
            size += loaded.size
        if group:
            yield group

    def _group_limit(self) -> int:
        """Images per request: ours or the server's, asked once, whichever is lower."""
        if self._images_per_request > 1 and self._server_limit is None:
            self._server_limit = self.model().max_images_per_request
        return min(self._images_per_request, self._server_limit or 1)

    def _send(self, group: list[_Loaded], top_k: int, include_logits: bool) -> "_Call | None":
        messages = [one.message for one in group if one.message is not None]
        if not messages:
            return None
        request = pb.ClassifyRequest(
            model=self._model,
            images=messages,
            top_k=top_k,
            include_logits=include_logits,
            priority=self._priority,
        )
        call: _Call
        call = self._stub.Classify.future(
            request, timeout=self._timeout_seconds, metadata=self._connection.metadata
        )
        return call

    def _results(self, group: list[_Loaded], call: "_Call | None") -> Iterator[Result]:
        reply = pb.ClassifyResponse()
        if call is not None:
            try:
                reply = call.result()
            except grpc.RpcError as error:
                raise self._translated(error) from error
        answers = iter(reply.results)
        for one in group:
            if one.message is None:
                yield Result(name=one.name, error=one.error, reason="unreadable")
            else:
                yield _result(one.name, next(answers), reply)

    def _translated(self, error: grpc.RpcError) -> PackshotError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            how = "with" if self._connection.tls else "without"
            details = (
                f"no answer from {self.target}: {details} (is a server running there, {how} TLS?)"
            )
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"no answer from {self.target} within {self._timeout_seconds:g} s"
            )
        return error_from_status(code, details)


def _load(image: ImageSource, number: int) -> _Loaded:
    name = str(image) if isinstance(image, str | Path) else f"image {number}"
    if isinstance(image, np.ndarray):
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
            raise InvalidInput(
                f"{name} is an array of {image.dtype} {list(image.shape)}; expected uint8 RGB "
                "[height, width, 3]"
            )
        return _too_large(name, image.nbytes) or _Loaded(
            name=name, message=pb.Image(pixels=image.tobytes())
        )
    if isinstance(image, bytes):
        return _too_large(name, len(image)) or _Loaded(name=name, message=pb.Image(encoded=image))
    try:
        size = Path(image).stat().st_size
        return _too_large(name, size) or _Loaded(
            name=name, message=pb.Image(encoded=Path(image).read_bytes())
        )
    except OSError as error:
        return _Loaded(name=name, error=f"cannot be read: {error.strerror}")
    except ValueError as error:  # a NUL character in the path
        return _Loaded(name=name, error=f"cannot be read: {error}")


def _too_large(name: str, size: int) -> _Loaded | None:
    if size <= MAX_REQUEST_BYTES:
        return None
    return _Loaded(name=name, error=f"{size} bytes; at most {MAX_REQUEST_BYTES} can be sent")


def _result(name: str, answer: pb.ImageResult, reply: pb.ClassifyResponse) -> Result:
    failed = answer.HasField("error")
    return Result(
        name=name,
        predictions=tuple(
            Prediction(label=p.label, index=p.index, probability=p.probability)
            for p in answer.predictions
        ),
        error=answer.error.message if failed else None,
        reason=answer.error.reason if failed else None,
        logits=tuple(answer.logits),
        model=reply.model,
        version=reply.version,
        engine=reply.engine,
    )
