"""A small convolutional network as ONNX, with pixels in and logits and embedding out."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from packshot.bundle import EMBEDDING, INPUT, LOGITS

CLASSES = 4
WIDTH = 8


def write_network(path: Path, seed: int = 0, bias: float = 0.0) -> Path:
    """Three convolutions and a Gemm with random weights; `bias` is added to every convolution."""
    random = np.random.default_rng(seed)

    def weights(*shape: int) -> np.ndarray:
        scale = np.sqrt(2 / np.prod(shape[1:]))
        return (random.normal(size=shape) * scale).astype(np.float32)

    constants = {
        "w0": weights(WIDTH, 3, 7, 7), "w1": weights(WIDTH, WIDTH, 3, 3),
        "w2": weights(WIDTH, 1, 3, 3), "w3": weights(CLASSES, WIDTH),
        **{f"b{i}": np.full(WIDTH, bias, np.float32) for i in range(3)},
        "b3": np.zeros(CLASSES, np.float32), "scale": np.array(1 / 255, np.float32),
    }  # fmt: skip

    def conv(number: int, source: str, stride: int, group: int = 1) -> list[onnx.NodeProto]:
        inputs = [source, f"w{number}", f"b{number}"]
        output = f"conv{number}"
        return [
            helper.make_node(
                "Conv", inputs, [output], name=output, strides=[stride, stride], group=group
            ),
            helper.make_node("Relu", [output], [f"relu{number}"]),
        ]

    nodes = [
        helper.make_node("Cast", [INPUT], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["floats", "scale"], ["scaled"]),
        helper.make_node("Transpose", ["scaled"], ["planes"], perm=[0, 3, 1, 2]),
        *conv(0, "planes", 8),
        *conv(1, "relu0", 2),
        *conv(2, "relu1", 1, group=WIDTH),
        helper.make_node("GlobalAveragePool", ["relu2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], [EMBEDDING]),
        helper.make_node("Gemm", [EMBEDDING, "w3", "b3"], [LOGITS], name="head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["N", 224, 224, 3])],
        [
            helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, ["N", CLASSES]),
            helper.make_tensor_value_info(EMBEDDING, TensorProto.FLOAT, ["N", WIDTH]),
        ],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    return path


def photos(count: int, seed: int = 0) -> np.ndarray:
    """Smooth random pictures, uint8 [count, 224, 224, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 8, 8, 3), np.uint8)
    return coarse.repeat(28, axis=1).repeat(28, axis=2)
