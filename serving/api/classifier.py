"""packshot.v1.Classifier: protobuf to the pipeline's records and back."""

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing

from packshot.errors import ImageError, InvalidInput, NotFound, Unavailable
from packshot.services import CLASSIFIER
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer
from serving.admission import Priority
from serving.api.answering import (
    answering,
    answering_small,
    answering_stream,
    internal_error,
)
from serving.api.calls import Call, Calls
from serving.api.streaming import Turn, Window, in_turns
from serving.engines import Answer
from serving.model import Model
from serving.models import Models
from serving.pipeline import Pipeline, SentImage, Terms
from serving.ranking import Ranking
from serving.results import Answers, classified, embedding
from serving.stages import Stage

PRIORITIES = {pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE, pb.PRIORITY_BULK: Priority.BULK}
STREAM_WINDOW = 64  # images of one stream that are in the server at a time


class Classifier(ClassifierServicer):
    """The servicer."""

    service = CLASSIFIER

    def __init__(
        self, models: Models, pipeline: Pipeline, calls: Calls, *, max_message_bytes: int
    ) -> None:
        """`max_message_bytes` is told to clients: gRPC itself refuses larger messages."""
        self.calls = calls
        self._models = models
        self._pipeline = pipeline
        self._max_message_bytes = max_message_bytes

    @answering
    async def Classify(self, request: pb.ClassifyRequest, call: Call) -> pb.ClassifyResponse:
        ranking, include_logits = _ranking(request), request.include_logits
        answering = self._answer(request, call)
        del (
            request
        )  # the images have been taken out of it: while they wait it would be as much again
        model, answers = await answering
        response = pb.ClassifyResponse(
            model=model.name, version=model.version, engine=answers.engine
        )
        for answer in answers.images:
            self._tell(response.results.add(), model, answer, ranking, include_logits)
        return response

    @answering_stream
    async def ClassifyStream(
        self, requests: AsyncIterator[pb.ClassifyStreamRequest], call: Call
    ) -> AsyncGenerator[pb.ClassifyStreamResponse, None]:
        async def answer(
            read: tuple[pb.ClassifyStreamRequest, Turn],
        ) -> pb.ClassifyStreamResponse:
            request, turn = read
            try:
                return await self._answer_in_stream(request, turn, call)
            finally:
                turn.leave()

        window = Window(answer, size=STREAM_WINDOW, ending=self.calls.draining)
        async with aclosing(window.run(in_turns(requests))) as responses:
            async for response in responses:
                yield response
        if window.ended_early:
            raise Unavailable("the server is draining: send what is unanswered to another")

    @answering
    async def Embed(self, request: pb.EmbedRequest, call: Call) -> pb.EmbedResponse:
        normalize = request.normalize
        answering = self._answer(request, call)
        del request
        model, answers = await answering
        return pb.EmbedResponse(
            model=model.name,
            version=model.version,
            engine=answers.engine,
            results=[self._embedding(model, one, normalize) for one in answers.images],
        )

    @answering_small
    async def GetModel(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        model = self._models.named(request.model)
        manifest = model.manifest
        return pb.GetModelResponse(
            model=model.name,
            version=model.version,
            architecture=manifest.architecture,
            labels=manifest.labels,
            input_shape=manifest.image.shape,
            engine=model.engine,
            refused_engines=[
                pb.EngineRefusal(engine=r.engine, reason=r.reason, message=r.message)
                for r in model.opened.refusals
            ],
            accuracy=model.opened.file.measured.accuracy,
            rejected_versions=[
                pb.RejectedVersion(version=version, reason=one.reason)
                for version, one in self._models.rejected.get(model.name, {}).items()
            ],
            max_images_per_request=self._pipeline.max_images_per_request,
            served_models=self._models.names,
            default_model=self._models.default or "",
            min_confidence=manifest.min_confidence,
            max_image_bytes=self._pipeline.max_image_bytes,
            max_message_bytes=self._max_message_bytes,
        )

    async def _answer(
        self, request: pb.ClassifyRequest | pb.EmbedRequest, call: Call
    ) -> tuple[Model, Answers]:
        model = self._models.named(request.model)
        images = [_sent_image(image) for image in request.images]
        seconds, priority = call.timeout_seconds, _priority(request.priority)
        del request
        terms = Terms(timeout_seconds=seconds, call_ends=seconds is not None, priority=priority)
        call.asks(model, len(images))
        answers = await self._pipeline.answer(model, images, terms, call.stages)
        call.engine = answers.engine
        return model, answers

    async def _answer_in_stream(
        self, request: pb.ClassifyStreamRequest, turn: Turn, call: Call
    ) -> pb.ClassifyStreamResponse:
        """Whatever happens to one image is told in its answer; the stream goes on."""
        response, stages = pb.ClassifyStreamResponse(id=request.id), list[Stage]()
        try:
            call.asks(self._models.named(request.model), 1)
            ranking = _ranking(request)
            model, answers = await self._pipeline.answer_when_free(
                lambda: self._models.named(request.model),
                _sent_image(request.image),
                turn,
                stages,
            )
            response.model, response.version = model.name, model.version
            response.engine = answers.engine
            (answer,) = answers.images
            self._tell(response.result, model, answer, ranking, request.include_logits)
        except Exception as error:
            response.ClearField("result")  # an error stands alone
            response.result.error.CopyFrom(_stream_error(call, error))
        call.went_through(stages)
        return response

    def _tell(
        self,
        result: pb.ImageResult,
        model: Model,
        answer: Answer | ImageError,
        ranking: Ranking,
        include_logits: bool,
    ) -> None:
        """Fills in the result: messages made by themselves would be copied, by being serialised."""
        found = classified(model, answer, ranking)
        if isinstance(found, ImageError):
            result.error.CopyFrom(_image_error(found))
            return
        for one in found.predictions:
            result.predictions.add(label=one.label, index=one.index, probability=one.probability)
        if include_logits:
            result.logits.extend(found.logits.tolist())
        result.abstained = found.abstained

    def _embedding(
        self, model: Model, answer: Answer | ImageError, normalize: bool
    ) -> pb.EmbedResult:
        found = embedding(model, answer, normalize=normalize)
        if isinstance(found, ImageError):
            return pb.EmbedResult(error=_image_error(found))
        return pb.EmbedResult(embedding=found.tolist())


def _sent_image(image: pb.Image) -> SentImage:
    if image.WhichOneof("content") == "pixels":
        return SentImage(content=image.pixels, is_pixels=True)
    return SentImage(content=image.encoded, is_pixels=False)


def _priority(value: pb.Priority) -> Priority:
    return PRIORITIES.get(value, Priority.INTERACTIVE)


def _ranking(request: pb.ClassifyRequest | pb.ClassifyStreamRequest) -> Ranking:
    given = request.HasField("min_confidence")
    return Ranking(top_k=request.top_k, min_confidence=request.min_confidence if given else None)


def _image_error(error: ImageError) -> pb.ImageError:
    return pb.ImageError(reason=error.reason, message=str(error))


def _stream_error(call: Call, error: Exception) -> pb.ImageError:
    for kind, reason in STREAM_REASONS.items():
        if isinstance(error, kind):
            return pb.ImageError(reason=reason, message=str(error))
    return pb.ImageError(reason="internal", message=internal_error(call, error))


STREAM_REASONS: dict[type[Exception], str] = {
    NotFound: "not_found",
    InvalidInput: "invalid",
    Unavailable: "unavailable",
}
