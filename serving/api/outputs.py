"""The output tensors of the Open Inference Protocol: which are wanted, and how they are written."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.bundle import EMBEDDING, LOGITS, Manifest
from packshot.errors import InvalidInput
from packshot.oip import open_inference_pb2 as pb
from serving.api.parameters import whole_number
from serving.api.tensors import LENGTH_BYTES, quoted
from serving.results import Tensors

PROBABILITIES = "probabilities"
CLASSIFYING = (LOGITS, PROBABILITIES)  # what labels belong to
NAMES = (*CLASSIFYING, EMBEDDING)


class WantedOutput(msgspec.Struct, frozen=True, kw_only=True):
    """`best`: the labels of so many highest values, instead of all values."""

    name: str
    best: int | None = None


def widths(manifest: Manifest) -> dict[str, int]:
    """Of each output: how many values there are of an image."""
    classes = len(manifest.labels)
    return {LOGITS: classes, PROBABILITIES: classes, EMBEDDING: manifest.embedding_width}


def wanted_outputs(request: pb.ModelInferRequest) -> list[WantedOutput]:
    """In the order of the request; all if it names none. Raises InvalidInput."""
    if not request.outputs:
        return [WantedOutput(name=name) for name in NAMES]
    if len(request.outputs) > len(NAMES):
        raise InvalidInput(
            f"{len(request.outputs)} outputs are wanted; there is {', '.join(NAMES)}: name each "
            "once at most"
        )
    wanted = [_wanted(output) for output in request.outputs]
    names = [one.name for one in wanted]
    if len(set(names)) < len(names):
        raise InvalidInput(f"the wanted outputs are {', '.join(names)}: name each once at most")
    return wanted


def _wanted(output: pb.ModelInferRequest.InferRequestedOutputTensor) -> WantedOutput:
    if output.name not in NAMES:
        raise InvalidInput(f"no output {quoted(output.name)}; there is {', '.join(NAMES)}")
    if "shared_memory_region" in output.parameters:
        raise InvalidInput(
            f"{output.name} is wanted in shared memory, which is not written: read the response"
        )
    best = whole_number(output.parameters, "classification")
    if best == 0:
        raise InvalidInput("parameter classification is 0; send an int64_param that is 1 or more")
    if best is not None and output.name not in CLASSIFYING:
        raise InvalidInput(
            f"classification of {output.name}, whose values have no labels: ask for that of "
            f"{' or '.join(CLASSIFYING)}"
        )
    return WantedOutput(name=output.name, best=best)


def add_output(
    response: pb.ModelInferResponse, wanted: WantedOutput, tensors: Tensors, labels: Sequence[str]
) -> None:
    values: npt.NDArray[np.float32] = getattr(tensors, wanted.name)
    datatype, shape, raw = "FP32", values.shape, values.astype("<f4").tobytes()
    if wanted.best is not None:
        best = min(wanted.best, len(labels))
        datatype, shape, raw = "BYTES", (len(values), best), _classification(values, best, labels)
    response.outputs.add(name=wanted.name, datatype=datatype, shape=shape)
    response.raw_output_contents.append(raw)


def _classification(values: npt.NDArray[np.float32], best: int, labels: Sequence[str]) -> bytes:
    """ "value:index:label" of the highest values of each row, best first, each after its length."""
    ranked = np.argsort(-values, axis=1, kind="stable")[:, :best].tolist()
    texts = (
        f"{row[index]:f}:{index}:{labels[index]}".encode()
        for row, indices in zip(values.tolist(), ranked, strict=True)
        for index in indices
    )
    return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)
