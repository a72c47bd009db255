"""How much arithmetic an image is to a network, counted in its ONNX graph."""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx
from onnx import NodeProto

Shapes = Mapping[str, tuple[int, ...]]


def operations_per_image(path: Path) -> int:
    """Multiplications and additions of the convolutions and matrix products of a float network.

    The rest (ReLU, pooling, sums) is left out, as in published figures: those of ResNet-50 at 224
    pixels say 4.1 billion multiply-adds (https://pytorch.org/vision/stable/models.html), which are
    two operations each.
    """
    model = onnx.load(path, load_external_data=False)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1  # one image
    del model.graph.value_info[:]  # shapes of any batch: to be inferred anew
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True).graph
    shapes = {value.name: _shape(value) for value in (*inferred.value_info, *inferred.output)}
    shapes |= {weight.name: tuple(weight.dims) for weight in inferred.initializer}
    return 2 * sum(_multiply_adds(node, shapes) for node in inferred.node)


def _shape(value: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)


def _multiply_adds(node: NodeProto, shapes: Shapes) -> int:
    """Every element of the output is a sum of as many products."""
    match node.op_type:
        case "Conv":
            products = math.prod(shapes[node.input[1]][1:])  # channels of a group, height, width
        case "Gemm":
            transposed = any(one.name == "transB" and one.i for one in node.attribute)
            products = shapes[node.input[1]][1 if transposed else 0]
        case "MatMul":
            products = shapes[node.input[1]][-2]
        case _:
            return 0
    return math.prod(shapes[node.output[0]]) * products
