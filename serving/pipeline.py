"""One request from images to answers: admit, decode, queue and run, rank. Knows no wire format."""

import asyncio
import time
from collections.abc import Coroutine, Iterable, Sequence
from typing import TypeVar

import msgspec

from packshot.errors import DeadlineExceeded, ImageError, InvalidInput, NotFound, Unavailable
from packshot.image import ImageSpec, Pixels, read_pixels
from packshot.prediction import Logits, Prediction, top_predictions
from serving.decoding import DecodePool
from serving.metrics import Metrics
from serving.model import Model
from serving.scheduler import Priority, Ticket

DEFAULT_TOP_K = 5

T = TypeVar("T")


class SentImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as it came: a file's bytes, or raw pixels."""

    content: bytes
    is_pixels: bool


class Classified(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one image."""

    predictions: tuple[Prediction, ...]
    logits: Logits


class Pipeline:
    """Answers requests with the model in place; `model` is None until one is loaded."""

    def __init__(
        self,
        decoders: DecodePool,
        metrics: Metrics,
        *,
        max_images_per_request: int,
        default_timeout_seconds: float,
    ) -> None:
        self.model: Model | None = None
        self.rejected: dict[str, str] = {}  # version that did not pass -> reason
        self.max_images_per_request = max_images_per_request
        self._default_timeout_seconds = default_timeout_seconds
        self._decoders = decoders
        self._metrics = metrics

    def model_named(self, name: str) -> Model:
        """The model of that name; empty means the default. Raises Unavailable or NotFound."""
        model = self.current()
        if name not in ("", model.manifest.model):
            raise NotFound(f"no model {name!r}; this server has {model.manifest.model!r}")
        return model

    def current(self) -> Model:
        """Raises Unavailable while the first one is being loaded."""
        if self.model is None:
            raise Unavailable("the model is still being loaded")
        return self.model

    async def classify(
        self,
        model: Model,
        images: Sequence[SentImage],
        *,
        top_k: int,
        timeout_seconds: float | None,
        priority: Priority = Priority.INTERACTIVE,
    ) -> list[Classified | ImageError]:
        """One answer per image, in order; an image that cannot be used gets its ImageError.

        Raises InvalidInput, Overloaded, DeadlineExceeded, Unavailable or ServiceFailed.
        """
        self._check(images, top_k)
        if timeout_seconds is None:
            timeout_seconds = self._default_timeout_seconds
        started = time.monotonic()
        with model.scheduler.admit(
            images=len(images),
            size=sum(len(image.content) for image in images),
            deadline=started + timeout_seconds,
            decode_seconds=self._decoders.predict_seconds(sum(not i.is_pixels for i in images)),
            priority=priority,
        ) as ticket:
            try:
                async with asyncio.timeout(timeout_seconds):
                    answers = await all_of(self._logits(model, ticket, image) for image in images)
            except TimeoutError as error:
                raise DeadlineExceeded(f"no answer within {timeout_seconds:.3f} s") from error
            ticket.answered = not any(isinstance(answer, ImageError) for answer in answers)
        results = [self._ranked(model, answer, top_k or DEFAULT_TOP_K) for answer in answers]
        self._metrics.stage("total", time.monotonic() - started)
        return results

    def _check(self, images: Sequence[SentImage], top_k: int) -> None:
        limit = self.max_images_per_request
        if not images:
            raise InvalidInput("the request has no image; send 1 or more")
        if len(images) > limit:
            raise InvalidInput(f"the request has {len(images)} images; at most {limit} are taken")
        if top_k < 0:
            raise InvalidInput(f"top_k is {top_k}; it must be 0 (for {DEFAULT_TOP_K}) or more")

    async def _logits(self, model: Model, ticket: Ticket, image: SentImage) -> Logits | ImageError:
        try:
            pixels = await self._decode(image, model.manifest.image)
        except ImageError as error:
            return error
        return await model.scheduler.submit(ticket, pixels)

    async def _decode(self, image: SentImage, spec: ImageSpec) -> Pixels:
        if image.is_pixels:
            return read_pixels(image.content, spec)
        return await self._decoders.decode(image.content, spec)

    def _ranked(
        self, model: Model, answer: Logits | ImageError, top_k: int
    ) -> Classified | ImageError:
        if isinstance(answer, ImageError):
            self._metrics.images.labels(answer.reason).inc()
            return answer
        manifest = model.manifest
        predictions = top_predictions(answer, manifest.labels, top_k, manifest.temperature)
        self._metrics.images.labels("ok").inc()
        self._metrics.top_probability.observe(predictions[0].probability)
        return Classified(predictions=predictions, logits=answer)


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Results in order; the first error ends the rest and is raised, so that nothing runs on."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in work]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
