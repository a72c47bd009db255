"""One request from images to answers: admit, decode, queue and run, rank. Knows no wire format."""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from packshot.errors import (
    DeadlineExceeded,
    ImageError,
    InvalidInput,
    Overloaded,
    Unavailable,
)
from packshot.image import ImageLimits, load_pixels, read_pixels
from serving.admission import Priority, Ticket
from serving.cache import Cache
from serving.decoding import DecodePool
from serving.engines import Answer
from serving.lanes import Picture
from serving.model import Model
from serving.results import Answers
from serving.stages import Stage

T = TypeVar("T")


class Turn(Protocol):
    """Of an image that waits to be let in (`serving.api.streaming.Turn`)."""

    async def take(self) -> None: ...

    def leave(self) -> None: ...


class SentImage(msgspec.Struct, frozen=True, kw_only=True):
    """An image as it came: a file's bytes, or raw pixels."""

    content: bytes
    is_pixels: bool


class Terms(msgspec.Struct, frozen=True, kw_only=True):
    """How a request wants to be treated; without `timeout_seconds` the server's default holds.

    `call_ends`: gRPC cancels the call when that time is over, which no timer has to do once more.
    """

    timeout_seconds: float | None = None
    call_ends: bool = False
    priority: Priority = Priority.INTERACTIVE


IN_STREAM = Terms(timeout_seconds=math.inf, call_ends=True, priority=Priority.BULK)
"""Of an image in a stream, whose call ends it. What has a deadline goes before it."""


class Pipeline:
    """Answers requests with a model."""

    def __init__(
        self,
        decoders: DecodePool,
        cache: Cache,
        limits: ImageLimits,
        *,
        max_images_per_request: int,
        default_timeout_seconds: float,
    ) -> None:
        self.max_images_per_request = max_images_per_request
        self.max_image_bytes = limits.max_bytes
        self._default_timeout_seconds = default_timeout_seconds
        self._decoders = decoders
        self._cache = cache
        self._limits = limits

    async def answer(
        self,
        model: Model,
        images: Sequence[SentImage],
        terms: Terms,
        stages: list[Stage] | None = None,
        let_in: Callable[[], None] = lambda: None,
    ) -> Answers:
        """An image that cannot be used gets its ImageError; adds what it went through to `stages`.

        `let_in` is called once its images count as queued, if any has to be run.

        Raises InvalidInput, Overloaded, DeadlineExceeded, Unavailable or ServiceFailed.
        """
        self.check_count(len(images))
        started, engine = time.monotonic(), model.engine
        keys = [
            self._cache.key(model.number, engine, one.content, is_pixels=one.is_pixels)
            for one in images
        ]
        kept = [self._cache.get(key) for key in keys]
        wanted = [image for image, answer in zip(images, kept, strict=True) if answer is None]
        if wanted:
            found = await self._run(model, wanted, terms, stages, let_in)
            run, same_engine = iter(found.images), found.engine == engine
            answers = [next(run) if answer is None else answer for answer in kept]
            for key, one in zip(keys, answers, strict=True):
                # Another engine may have taken over since the key was made.
                if key and same_engine and isinstance(one, Answer):
                    self._cache.put(key, one)
            engine = found.engine
        else:
            answers = [answer for answer in kept if answer is not None]
        model.metrics.stage("total", time.monotonic() - started)
        return Answers(images=answers, engine=engine)

    async def answer_when_free(
        self, find: Callable[[], Model], image: SentImage, turn: Turn, stages: list[Stage]
    ) -> tuple[Model, Answers]:
        """Like `answer` for one bulk image without a deadline, by the model that `find` gives.

        It waits for room where `answer` would refuse, holding its turn, and again if it has to
        make room for others. A version that is swapped in meanwhile answers what still waits.
        """
        while True:
            model = find()
            await model.scheduler.room(images=1, size=len(image.content))
            if find() is not model:  # another version came while it waited
                continue
            try:
                found = await self.answer(model, [image], IN_STREAM, stages, let_in=turn.leave)
                return model, found
            except Overloaded:
                await turn.take()
            except Unavailable:
                if find() is model:
                    raise

    def check_count(self, images: int) -> None:
        """Raises InvalidInput for a number of images that a request may not have."""
        limit = self.max_images_per_request
        if images == 0:
            raise InvalidInput("the request has no image; send 1 or more")
        if images > limit:
            raise InvalidInput(f"the request has {images} images; at most {limit} are taken")

    async def _run(
        self,
        model: Model,
        images: Sequence[SentImage],
        terms: Terms,
        stages: list[Stage] | None,
        let_in: Callable[[], None],
    ) -> Answers:
        timeout_seconds = terms.timeout_seconds
        if timeout_seconds is None:
            timeout_seconds = self._default_timeout_seconds
        encoded = [len(image.content) for image in images if not image.is_pixels]
        in_lanes = model.scheduler.lanes_decode
        with model.scheduler.admit(
            images=len(images),
            size=sum(len(image.content) for image in images),
            deadline=time.monotonic() + timeout_seconds,
            encoded=encoded if in_lanes else (),
            decode_seconds=0.0 if in_lanes else self._decoders.predict_seconds(encoded),
            priority=terms.priority,
            stages=stages,
        ) as ticket:
            let_in()
            try:
                async with nullcontext() if terms.call_ends else asyncio.timeout(timeout_seconds):
                    answers = await all_of(self._one(model, ticket, image) for image in images)
            except TimeoutError as error:
                raise DeadlineExceeded(f"no answer within {timeout_seconds:.3f} s") from error
            ticket.answered = not any(isinstance(answer, ImageError) for answer in answers)
        return Answers(images=answers, engine=ticket.engine or model.engine)

    async def _one(self, model: Model, ticket: Ticket, image: SentImage) -> Answer | ImageError:
        try:
            picture = await self._picture(model, ticket, image)
        except ImageError as error:
            ticket.not_pending()  # it will never reach the queue
            return error.without_history()
        try:
            size = len(image.content) if callable(picture) else 0
            return await model.scheduler.submit(ticket, picture, file_size=size)
        except ImageError as error:  # a lane could not decode it
            return error.without_history()

    async def _picture(self, model: Model, ticket: Ticket, image: SentImage) -> Picture:
        """What the queue takes: pixels, or for lanes that decode for themselves, how to get them.

        A device's lanes copy and compute, and would wait for decoding: there the pool does it.
        """
        spec = model.manifest.image
        if image.is_pixels:
            return read_pixels(image.content, spec)
        if model.scheduler.lanes_decode:
            return partial(load_pixels, image.content, spec, self._limits)
        pixels, stage = await self._decoders.decode(image.content, spec)
        model.metrics.stage("decode", stage.ended - stage.started)
        ticket.stages.append(stage)
        return pixels


async def all_of(work: Iterable[Coroutine[None, None, T]]) -> list[T]:
    """Results in order; the first error ends the rest and is raised, so that nothing runs on."""
    coroutines = list(work)
    if len(coroutines) == 1:  # the usual request: a task of its own would only cost time
        return [await coroutines[0]]
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one) for one in coroutines]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]
