"""Requests and answers of the Open Inference Protocol."""

import grpc
import numpy as np
import pytest
from processes import TIMEOUT
from test_fuzz import INSIDES
from tiny import PURE, jpeg

from packshot.image import ImageSpec, load_pixels
from packshot.oip import open_inference_pb2 as pb

SERVICE = "inference.GRPCInferenceService"
FILES = [jpeg(colour) for colour in PURE.values()]
PIXELS = np.stack([load_pixels(file, ImageSpec()) for file in FILES])
CODES = grpc.StatusCode


def prefixed(files: list[bytes]) -> bytes:
    return b"".join(len(file).to_bytes(4, "little") + file for file in files)


def tensor(datatype: str = "BYTES", shape: tuple[int, ...] = (3,), **contents: object):
    given = {"contents": pb.InferTensorContents(**contents)} if contents else {}
    return pb.ModelInferRequest.InferInputTensor(
        name="images", datatype=datatype, shape=shape, **given
    )


def asking(given, raw: bytes | None = None, outputs=(), **parameters: object):
    """`outputs`: names, or pairs of a name and the k of its classification."""
    request = pb.ModelInferRequest(inputs=[given])
    if raw is not None:
        request.raw_input_contents.append(raw)
    for name, best in ((one, None) if isinstance(one, str) else one for one in outputs):
        output = request.outputs.add(name=name)
        if best is not None:
            output.parameters["classification"].int64_param = best
    for name, value in parameters.items():
        set_parameter(request, name, value)
    return request


def set_parameter(request, name: str, value: object) -> None:
    kinds = {bool: "bool_param", int: "int64_param", str: "string_param", float: "double_param"}
    setattr(request.parameters[name], kinds[type(value)], value)


def of_files(files: list[bytes] = FILES, **options: object) -> pb.ModelInferRequest:
    return asking(tensor("BYTES", (len(files),)), prefixed(files), **options)


def infer(stub, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    return stub.ModelInfer(request, timeout=TIMEOUT)


def arrays(reply: pb.ModelInferResponse) -> dict[str, np.ndarray]:
    """Of outputs of numbers."""
    assert len(reply.outputs) == len(reply.raw_output_contents)
    assert {output.datatype for output in reply.outputs} == {"FP32"}
    return {
        output.name: np.frombuffer(raw, "<f4").reshape(output.shape)
        for output, raw in zip(reply.outputs, reply.raw_output_contents, strict=True)
    }


def texts(reply: pb.ModelInferResponse, number: int = 0) -> list[str]:
    """Elements of an output of BYTES, row by row."""
    assert reply.outputs[number].datatype == "BYTES"
    raw, found = reply.raw_output_contents[number], []
    while raw:
        end = 4 + int.from_bytes(raw[:4], "little")
        found.append(raw[4:end].decode())
        raw = raw[end:]
    return found


def refusal(call, request, code: grpc.StatusCode = CODES.INVALID_ARGUMENT) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        call(request, timeout=TIMEOUT)
    assert caught.value.code() is code, caught.value
    assert not INSIDES.search(caught.value.details())
    return caught.value.details()
