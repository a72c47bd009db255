"""inference.GRPCInferenceService, the Open Inference Protocol: to the pipeline and back."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing

import grpc

from packshot.errors import InvalidInput, NotFound, Unavailable
from packshot.oip import open_inference_pb2 as pb
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from packshot.services import OPEN_INFERENCE
from packshot.status import status_code
from serving.api.answering import (
    answering,
    answering_small,
    answering_stream,
    internal_error,
)
from serving.api.calls import Call, Calls
from serving.api.metadata import model_config, model_metadata, repository_index, server_metadata
from serving.api.outputs import add_output, wanted_outputs
from serving.api.parameters import terms
from serving.api.streaming import InOrder, Turn, Window, in_turns
from serving.api.tensors import images_of, quoted
from serving.health import Health
from serving.model import Model
from serving.models import Models
from serving.pipeline import Pipeline
from serving.results import tensors
from serving.stages import Stage

STREAM_WINDOW = 64  # requests of one stream that are in the server at a time


class OpenInference(GRPCInferenceServiceServicer):
    """The servicer."""

    service = OPEN_INFERENCE

    def __init__(
        self,
        models: Models,
        pipeline: Pipeline,
        calls: Calls,
        health: Health,
    ) -> None:
        self.calls = calls
        self._models = models
        self._pipeline = pipeline
        self._health = health

    @answering_small
    async def ServerLive(self, request: pb.ServerLiveRequest, call: Call) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=self._health.live())

    @answering_small
    async def ServerReady(
        self, request: pb.ServerReadyRequest, call: Call
    ) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self._health.ready())

    @answering_small
    async def ModelReady(self, request: pb.ModelReadyRequest, call: Call) -> pb.ModelReadyResponse:
        ready = self._health.model_ready(lambda: self._named(request.name, request.version))
        return pb.ModelReadyResponse(ready=ready)

    @answering_small
    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, call: Call
    ) -> pb.ServerMetadataResponse:
        return server_metadata()

    @answering_small
    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, call: Call
    ) -> pb.ModelMetadataResponse:
        return model_metadata(self._named(request.name, request.version))

    @answering_small
    async def ModelConfig(
        self, request: pb.ModelConfigRequest, call: Call
    ) -> pb.ModelConfigResponse:
        model = self._named(request.name, request.version)
        limit = self._pipeline.max_images_per_request
        return pb.ModelConfigResponse(config=model_config(model, limit))

    @answering_small
    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, call: Call
    ) -> pb.RepositoryIndexResponse:
        if request.repository_name:
            raise InvalidInput(
                f"no repository {quoted(request.repository_name)}: leave repository_name empty"
            )
        index = repository_index(self._models)
        found = [one for one in index if one.state == "READY" or not request.ready]
        return pb.RepositoryIndexResponse(models=found)

    @answering
    async def ModelInfer(self, request: pb.ModelInferRequest, call: Call) -> pb.ModelInferResponse:
        inferring = self._infer(request, call, call.timeout_seconds, call.stages)
        del request  # its images are taken out: while they wait it would be as much again
        return await inferring

    @answering_stream
    async def ModelStreamInfer(
        self, requests: AsyncIterator[pb.ModelInferRequest], call: Call
    ) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
        async def answer(read: tuple[pb.ModelInferRequest, Turn]) -> pb.ModelStreamInferResponse:
            request, turn = read
            try:
                return await self._answer_in_stream(request, turn, call)
            finally:
                turn.leave()

        # Triton answers in order, and its clients need not send ids.
        window = Window(InOrder(answer), size=STREAM_WINDOW, ending=self.calls.draining)
        async with aclosing(window.run(in_turns(requests))) as responses:
            async for response in responses:
                yield response
        if window.ended_early:
            raise Unavailable("the server is draining: send what is unanswered to another")

    async def _infer(
        self,
        request: pb.ModelInferRequest,
        call: Call,
        timeout_seconds: float | None,
        stages: list[Stage],
        let_in: Callable[[], None] = lambda: None,
    ) -> pb.ModelInferResponse:
        model = self._named(request.model_name, request.model_version)
        wanted, allowed = wanted_outputs(request), terms(request.parameters, timeout_seconds)
        images = images_of(request, model.manifest.image, self._pipeline.check_count)
        request_id = request.id
        del request
        call.asks(model, len(images))
        answers = await self._pipeline.answer(model, images, allowed, stages, let_in)
        call.engine = answers.engine
        found = tensors(model, answers)
        response = pb.ModelInferResponse(
            model_name=model.name, model_version=str(model.version), id=request_id
        )
        response.parameters["engine"].string_param = answers.engine
        for one in wanted:
            add_output(response, one, found, model.manifest.labels)
        return response

    async def _answer_in_stream(
        self, request: pb.ModelInferRequest, turn: Turn, call: Call
    ) -> pb.ModelStreamInferResponse:
        """Whatever happens to one request is told in its answer; the stream goes on."""
        stages: list[Stage] = []
        try:
            # The stream's own deadline covers it all; each request has its own or the server's.
            answer = await self._infer(request, call, None, stages, turn.leave)
            return pb.ModelStreamInferResponse(infer_response=answer)
        except Exception as error:
            return pb.ModelStreamInferResponse(
                error_message=_in_words(call, error),
                infer_response=pb.ModelInferResponse(id=request.id),
            )
        finally:
            call.went_through(stages)

    def _named(self, name: str, version: str) -> Model:
        model = self._models.named(name)
        if version not in ("", str(model.version)):
            raise NotFound(
                f"no version {quoted(version)} of {model.name}; {model.version} is served"
            )
        return model


def _in_words(call: Call, error: Exception) -> str:
    """A status and its text, for where there is room for a text only."""
    code = status_code(error)
    internal = code is grpc.StatusCode.INTERNAL
    return f"{code.name}: {internal_error(call, error) if internal else error}"
