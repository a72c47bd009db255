"""The client: files, bytes or arrays in, ranked labels out.

with Client("127.0.0.1:8001") as client:
    for result in client.classify(["mug.jpg", "shoe.png"]):
        print(result.name, result.label, result.probability)
"""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias, TypeVar

import grpc
import numpy as np

from packshot.answers import Embedding, ModelInfo, Result, embedding, model_info, result
from packshot.channel import Connection, Tls
from packshot.errors import DeadlineExceeded, InvalidInput, PackshotError
from packshot.limits import Limits
from packshot.outgoing import MAX_REQUEST_BYTES, ImageSource, Outgoing, Wanted, read_source
from packshot.prediction import DEFAULT_TOP_K
from packshot.services import CLASSIFIER
from packshot.status import error_from_status
from packshot.stream import BulkStream
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

Record = TypeVar("Record", Result, Embedding)
Request = TypeVar("Request", pb.ClassifyRequest, pb.EmbedRequest)
_Call: TypeAlias = "grpc.Future[Any]"  # of a ClassifyResponse or an EmbedResponse

_IMAGE_TYPES = (str, Path, bytes, np.ndarray)

DEFAULT_TARGET = "127.0.0.1:8001"
MAX_MESSAGE_BYTES = 64 * 1024 * 1024
ALONE_UNASKED_BYTES = 1024 * 1024  # less in a request of one image fails at most that image

# Classifying twice does no harm, so a refusal for overload or a restarting server is retried, later
# if the server's pushback says so, and not at all when most requests fail (retryThrottling).
SERVICE_CONFIG = {
    # Of a name with several addresses, as a headless Service has, all are used, in turns.
    "loadBalancingConfig": [{"round_robin": {}}],
    "methodConfig": [
        {
            "name": [{"service": CLASSIFIER}],
            "retryPolicy": {
                "maxAttempts": 4,
                "initialBackoff": "0.2s",
                "maxBackoff": "2s",
                "backoffMultiplier": 2,
                # CANCELLED, not by us: a request met a server that had just stopped to accept.
                "retryableStatusCodes": ["UNAVAILABLE", "RESOURCE_EXHAUSTED", "CANCELLED"],
            },
        },
        # A stream is taken up again by packshot.stream, which knows what was answered.
        {"name": [{"service": CLASSIFIER, "method": "ClassifyStream"}]},
    ],
    "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1},
}
CHANNEL_OPTIONS = [
    ("grpc.service_config", json.dumps(SERVICE_CONFIG)),
    # gRPC retries only what fits into this buffer; its default would leave out most photographs.
    ("grpc.per_rpc_retry_buffer_size", MAX_MESSAGE_BYTES),
    # A server that restarts is found again in seconds; by default after up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 2000),
    # Its name may have another address by then; by default that is asked for every 30 seconds.
    ("grpc.dns_min_time_between_resolutions_ms", 2000),
    ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
]


class Client:
    """Connected to one server, or to all that a name stands for.

    Safe to share between threads; close it or use it in `with`.
    """

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
        """`target` is host:port; where the host has several addresses, they are used in turns.

        `timeout_seconds` is the deadline of each request, which the server sees and heeds.

        `tls` is True for the usual authorities, or says which; `token` is sent with every call, in
        plain text only to this machine. `bulk` requests run when no others wait, and are refused
        first when there is too much.

        What the server takes is asked once, by GetModel, and not before it matters: for a request
        of several images, for an image above 1 MiB, in a stream for one above 64 KiB, which every
        server takes. An image that is too large for it is not sent, and has its error.
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
        self._limits: Limits | None = None
        self._requests_in_flight = requests_in_flight
        self._connection = Connection(target=target, tls=tls, token=token)
        self._channel = self._connection.channel(CHANNEL_OPTIONS)
        self._stub = ClassifierStub(self._channel)

    def classify(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        top_k: int = DEFAULT_TOP_K,
        include_logits: bool = False,
        min_confidence: float | None = None,
    ) -> list[Result]:
        """Classifies one image or many; one result per image, in order. `top_k` 0 means 5.

        An image that cannot be used gets a result with `error`; one whose best label is less
        probable than `min_confidence` (without it, than the model's own threshold) is `abstained`.
        Raises PackshotError if the service cannot answer: InvalidInput, Unauthenticated, NotFound,
        Overloaded, DeadlineExceeded, Unavailable, ServiceFailed.
        """
        return list(
            self.classify_lazily(
                _many(images),
                top_k=top_k,
                include_logits=include_logits,
                min_confidence=min_confidence,
            )
        )

    def classify_lazily(
        self,
        images: Iterable[ImageSource],
        *,
        top_k: int = DEFAULT_TOP_K,
        include_logits: bool = False,
        min_confidence: float | None = None,
    ) -> Iterator[Result]:
        """Like `classify`, yielding each result as soon as it and those before it are there.

        Images are read as they are needed: a folder of any size fits.
        """
        wanted = Wanted(top_k=top_k, include_logits=include_logits, min_confidence=min_confidence)
        template = pb.ClassifyRequest(
            model=self._model,
            top_k=wanted.top_k,
            include_logits=wanted.include_logits,
            priority=self._priority,
            min_confidence=wanted.min_confidence,
        )
        yield from self._answered(images, self._stub.Classify, template, Result, result)

    def classify_stream(
        self,
        items: Iterable[tuple[str, ImageSource]],
        *,
        top_k: int = DEFAULT_TOP_K,
        include_logits: bool = False,
        min_confidence: float | None = None,
    ) -> Iterator[Result]:
        """For whole catalogues: (id, image) in, results out as they finish, `name` being the id.

        Runs when no interactive request waits, and waits instead of being refused. At most 128
        images are read and unanswered, whose ids must differ. When the server drains, restarts or
        is away for some seconds, what is unanswered is sent again: each id is answered exactly
        once. `timeout_seconds` is here the longest wait for the next answer.

        Raises PackshotError as `classify` does, Unavailable after several attempts in vain.
        """
        wanted = Wanted(top_k=top_k, include_logits=include_logits, min_confidence=min_confidence)
        template = pb.ClassifyStreamRequest(
            model=self._model,
            top_k=wanted.top_k,
            include_logits=wanted.include_logits,
            min_confidence=wanted.min_confidence,
        )
        return BulkStream(
            lambda requests: self._stub.ClassifyStream(
                requests, metadata=self._connection.metadata
            ),
            items,
            template=template,
            ask_limits=self._ask_limits,
            translated=self._translated,
            timeout_seconds=self._timeout_seconds,
        ).results()

    def embed(
        self, images: ImageSource | Iterable[ImageSource], *, normalize: bool = False
    ) -> list[Embedding]:
        """What the classifying layer sees of each image: near in direction for similar pictures.

        With `normalize` of length 1 (L2). Order, errors and exceptions as in `classify`.
        """
        template = pb.EmbedRequest(model=self._model, normalize=normalize, priority=self._priority)
        found = self._answered(_many(images), self._stub.Embed, template, Embedding, embedding)
        return list(found)

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
        return model_info(reply)

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

    def _answered(
        self,
        images: Iterable[ImageSource],
        method: Any,
        template: Request,
        record: type[Record],
        read: Callable[[str, Any, Any], Record],
    ) -> Iterator[Record]:
        """A record per image, in order, with some requests in flight; `read` makes it.

        `template`: a request but for its images.
        """
        waiting: deque[tuple[list[Outgoing], _Call | None]] = deque()
        try:
            for group in self._groups(images, template.ByteSize()):
                messages = [one.message for one in group if one.message is not None]
                call = self._sent(method, template, messages) if messages else None
                waiting.append((group, call))
                if len(waiting) >= self._requests_in_flight:
                    yield from self._records(*waiting.popleft(), record, read)
            while waiting:
                yield from self._records(*waiting.popleft(), record, read)
        finally:
            for _, call in waiting:
                if call is not None:
                    call.cancel()

    def _groups(self, images: Iterable[ImageSource], fields_bytes: int) -> Iterator[list[Outgoing]]:
        """Of each request, which has so many bytes without images."""
        group: list[Outgoing] = []
        size = fields_bytes
        for number, image in enumerate(images, start=1):
            name = str(image) if isinstance(image, str | Path) else f"image {number}"
            one = read_source(name, image)
            limits = self._limits_for(one, beside=len(group))
            full = len(group) >= min(self._images_per_request, limits.images)
            too_big = size + one.size > min(MAX_REQUEST_BYTES, limits.message_bytes)
            if group and (full or too_big):
                yield [limits.kept(one, fields_bytes) for one in group]
                group, size = [], fields_bytes
            group.append(one)
            size += one.size
        if group:
            yield [limits.kept(one, fields_bytes) for one in group]

    def _limits_for(self, one: Outgoing, *, beside: int) -> Limits:
        """What is known of them, asked if it matters for this image beside others."""
        if one.size > ALONE_UNASKED_BYTES or (beside and self._images_per_request > 1):
            return self._ask_limits()
        return self._limits or Limits()

    def _ask_limits(self) -> Limits:
        if self._limits is None:
            self._limits = Limits.told(self.model())
        return self._limits

    def _sent(self, method: Any, template: Request, messages: list[pb.Image]) -> _Call:
        request = type(template)(images=messages)
        request.MergeFrom(template)
        call: _Call = method.future(
            request, timeout=self._timeout_seconds, metadata=self._connection.metadata
        )
        return call

    def _records(
        self,
        group: list[Outgoing],
        call: "_Call | None",
        record: type[Record],
        read: Callable[[str, Any, Any], Record],
    ) -> Iterator[Record]:
        try:
            reply = call.result() if call is not None else None
        except grpc.RpcError as error:
            raise self._translated(error) from error
        answers = iter(reply.results if reply is not None else ())
        for one in group:
            if one.message is None:
                yield record(name=one.name, error=one.error, reason=one.reason)
            else:
                yield read(one.name, next(answers), reply)

    def _translated(self, error: grpc.RpcError) -> PackshotError:
        code, details = error.code(), error.details() or ""
        if code is grpc.StatusCode.UNAVAILABLE:
            details = self._connection.unanswered(details)
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return DeadlineExceeded(
                f"no answer from {self.target} within {self._timeout_seconds:g} s"
            )
        return error_from_status(code, details)


def _many(images: ImageSource | Iterable[ImageSource]) -> Iterable[ImageSource]:
    one = isinstance(images, _IMAGE_TYPES)
    return [images] if one else images  # type: ignore[list-item,return-value]  # `one` tells which
