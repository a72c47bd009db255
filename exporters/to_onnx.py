"""The network to fp32 ONNX: the portable truth that every other engine is made from."""

import hashlib
import logging
import warnings
from pathlib import Path

import msgspec
import onnx
import torch

from packshot.bundle import EMBEDDING, INPUT, LOGITS, labels_text
from packshot.image import ImageSpec
from trainer.checkpoint import Checkpoint
from trainer.model import PixelNetwork

OPSET = 18


def export_onnx(
    network: PixelNetwork, spec: ImageSpec, path: Path, metadata: dict[str, str]
) -> None:
    """Writes `path`: uint8 [N, crop, crop, 3] in, logits and embedding out, N dynamic.

    The normalisation is inside the graph. The file passes onnx.checker's full check, shape
    inference included.
    """
    example = torch.zeros(2, *spec.shape, dtype=torch.uint8)
    _quiet_exporter()
    with warnings.catch_warnings():
        # The exporter calls parts of torch that torch itself deprecates: not ours to mend.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network.cpu().eval(),
            (example,),
            dynamo=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=[LOGITS, EMBEDDING],
            dynamic_shapes=({0: torch.export.Dim("N", min=1)},),
            verbose=False,
        )
    model = program.model_proto
    for key, value in metadata.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model, full_check=True)
    path.write_bytes(model.SerializeToString())


def metadata_of(checkpoint: Checkpoint) -> dict[str, str]:
    """What the file says of itself: labels and image spec, and the hashes to compare them by."""
    labels = "\n".join(checkpoint.labels)
    image = msgspec.json.encode(checkpoint.image).decode()
    return {
        "packshot.labels": labels,
        "packshot.labels_sha256": hashlib.sha256(
            labels_text(checkpoint.labels).encode()
        ).hexdigest(),  # of labels.txt
        "packshot.image": image,
        "packshot.image_sha256": hashlib.sha256(image.encode()).hexdigest(),
        "packshot.weights_sha256": checkpoint.weights_sha256,
    }


def _quiet_exporter() -> None:
    """Its progress notes go to loggers; only errors matter to our user."""
    for name in ("torch.onnx", "onnxscript", "onnx_ir"):
        logging.getLogger(name).setLevel(logging.ERROR)
