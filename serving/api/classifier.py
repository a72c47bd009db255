"""packshot.v1.Classifier: protobuf to the pipeline's records and back."""

from packshot.errors import ImageError
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierServicer
from serving.api.answering import Calls, Context, answering
from serving.metrics import Metrics
from serving.pipeline import Classified, Pipeline, SentImage
from serving.scheduler import Priority

PRIORITIES = {pb.PRIORITY_INTERACTIVE: Priority.INTERACTIVE, pb.PRIORITY_BULK: Priority.BULK}


class Classifier(ClassifierServicer):
    """The servicer."""

    service = "packshot.v1.Classifier"

    def __init__(self, pipeline: Pipeline, metrics: Metrics, calls: Calls) -> None:
        self.metrics = metrics
        self.calls = calls
        self._pipeline = pipeline

    @answering
    async def Classify(self, request: pb.ClassifyRequest, context: Context) -> pb.ClassifyResponse:
        model = self._pipeline.model_named(request.model)
        answers = await self._pipeline.classify(
            model,
            [_sent_image(image) for image in request.images],
            top_k=request.top_k,
            timeout_seconds=context.time_remaining(),
            priority=PRIORITIES.get(request.priority, Priority.INTERACTIVE),
        )
        return pb.ClassifyResponse(
            model=model.manifest.model,
            version=model.manifest.version,
            engine=model.engine,
            results=[_result(answer, request.include_logits) for answer in answers],
        )

    @answering
    async def GetModel(self, request: pb.GetModelRequest, context: Context) -> pb.GetModelResponse:
        model = self._pipeline.model_named(request.model)
        manifest = model.manifest
        return pb.GetModelResponse(
            model=manifest.model,
            version=manifest.version,
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
                pb.RejectedVersion(version=version, reason=reason)
                for version, reason in self._pipeline.rejected.items()
            ],
            max_images_per_request=self._pipeline.max_images_per_request,
        )


def _sent_image(image: pb.Image) -> SentImage:
    if image.WhichOneof("content") == "pixels":
        return SentImage(content=image.pixels, is_pixels=True)
    return SentImage(content=image.encoded, is_pixels=False)


def _result(answer: Classified | ImageError, include_logits: bool) -> pb.ImageResult:
    if isinstance(answer, ImageError):
        return pb.ImageResult(error=pb.ImageError(reason=answer.reason, message=str(answer)))
    return pb.ImageResult(
        predictions=[
            pb.Prediction(label=p.label, index=p.index, probability=p.probability)
            for p in answer.predictions
        ],
        logits=answer.logits.tolist() if include_logits else [],
    )
