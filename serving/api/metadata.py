"""What the Open Inference Protocol tells of the server and its models."""

from collections.abc import Iterator

from packshot import __version__
from packshot.bundle import INPUT, LABELS
from packshot.oip import open_inference_pb2 as pb
from packshot.triton import model_parameters
from serving.api.outputs import CLASSIFYING, widths
from serving.api.parameters import HIGHEST_PRIORITY, PRIORITY_LEVELS
from serving.model import Model
from serving.models import Models

EXTENSIONS = ("classification", "schedule_policy", "model_configuration")
ANY = -1

TensorMetadata = pb.ModelMetadataResponse.TensorMetadata
ModelIndex = pb.RepositoryIndexResponse.ModelIndex


def server_metadata() -> pb.ServerMetadataResponse:
    return pb.ServerMetadataResponse(name="packshot", version=__version__, extensions=EXTENSIONS)


def model_metadata(model: Model) -> pb.ModelMetadataResponse:
    """Of the input's forms it can tell one: pixels, which need no decoding."""
    manifest = model.manifest
    return pb.ModelMetadataResponse(
        name=model.name,
        versions=[str(model.version)],
        platform=_platform(model),
        inputs=[TensorMetadata(name=INPUT, datatype="UINT8", shape=[ANY, *manifest.image.shape])],
        outputs=[
            TensorMetadata(name=name, datatype="FP32", shape=[ANY, width])
            for name, width in widths(manifest).items()
        ],
    )


def model_config(model: Model, max_images: int) -> pb.ModelConfig:
    """As Triton's clients read it; shapes are those of one image."""
    manifest = model.manifest
    described = model_parameters(manifest, model.engine)
    return pb.ModelConfig(
        name=model.name,
        platform=_platform(model),
        max_batch_size=max_images,
        input=[
            pb.ModelInput(
                name=INPUT,
                data_type=pb.TYPE_UINT8,
                format=pb.ModelInput.FORMAT_NHWC,
                dims=manifest.image.shape,
            )
        ],
        output=[
            pb.ModelOutput(
                name=name,
                data_type=pb.TYPE_FP32,
                dims=[width],
                label_filename=LABELS if name in CLASSIFYING else "",
            )
            for name, width in widths(manifest).items()
        ],
        dynamic_batching=pb.ModelDynamicBatching(
            priority_levels=PRIORITY_LEVELS, default_priority_level=HIGHEST_PRIORITY
        ),
        parameters={key: pb.ModelParameter(string_value=text) for key, text in described.items()},
        model_transaction_policy=pb.ModelTransactionPolicy(decoupled=False),
    )


def repository_index(models: Models) -> Iterator[pb.RepositoryIndexResponse.ModelIndex]:
    """The versions that serve, and those that did not pass, with the reason."""
    for model in models:
        why = model.being_replaced or ""
        state = "UNAVAILABLE" if why else "READY"
        yield ModelIndex(name=model.name, version=str(model.version), state=state, reason=why)
    for name, versions in models.rejected.items():
        for version, one in versions.items():
            yield ModelIndex(name=name, version=version, state="UNAVAILABLE", reason=one.reason)


def _platform(model: Model) -> str:
    return f"packshot_{model.engine}"
