"""fp32 ONNX to fp16: what TensorRT builds its FP16 plans from.

TensorRT takes the precision of every layer from the file ("strongly typed"). Every float32 inside
the graph becomes float16; what goes in and comes out keeps its type, so that callers see no
difference. Pixels need no care: 0 to 255 are exact in float16, and so the cast of the uint8 input
goes to float16 directly and normalisation runs in it.
"""

from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    NodeProto,
    TensorProto,
    helper,
    numpy_helper,
)

from packshot.atomic import write_whole
from packshot.errors import InvalidInput

HALF = ".fp16"
"""Behind the name of an input or output: the same tensor inside the graph."""

TYPE_ATTRIBUTES = {"to", "dtype"}
"""Of operators: the type that they make."""


def convert_fp16(fp32: Path, target: Path) -> None:
    """Writes `target` from the fp32 model: inputs, outputs and metadata as they were.

    Raises InvalidInput for what is not a whole fp32 network: quantised, with subgraphs or
    functions, with an operator that takes float32 only or a weight beyond float16's 65504.
    """
    model = _read(fp32)
    _check_convertible(model, fp32.name)
    _rename_inside(model.graph)
    _halve_weights(model.graph, fp32.name)
    for node in model.graph.node:
        _halve_attributes(node, fp32.name)
    _cast_at_the_edges(model.graph)
    write_whole(target, _checked(model, fp32.name).SerializeToString())


def _read(path: Path) -> ModelProto:
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except (DecodeError, onnx.checker.ValidationError) as error:
        raise InvalidInput(f"{path.name} is not an ONNX model: {error}") from error
    return model


def _check_convertible(model: ModelProto, name: str) -> None:
    if model.functions:
        raise InvalidInput(f"{name} has functions of its own: export it with them inlined")
    opsets = {opset.domain: opset.version for opset in model.opset_import}
    for node in model.graph.node:
        if "Quantize" in node.op_type or "QLinear" in node.op_type:
            raise InvalidInput(
                f"{name} is quantised ({_label(node)}): convert the fp32 model it was made from"
            )
        if any(part.g.node or part.graphs for part in node.attribute):
            raise InvalidInput(
                f"{name} has a subgraph in {_label(node)}: export it without control flow"
            )
        if floats := _float32_only(node, opsets[node.domain]):
            raise InvalidInput(
                f"{name} cannot be fp16: {_label(node)} takes {', '.join(floats)} as float32 only"
            )


def _float32_only(node: NodeProto, version: int) -> list[str]:
    """Names of the operator's inputs that float16 does not fit."""
    if not onnx.defs.has(node.op_type, version, node.domain):
        return [f"inputs that ONNX does not define (domain {node.domain!r})"]
    formal = onnx.defs.get_schema(node.op_type, version, node.domain).inputs
    return [  # the last formal input may stand for any number of them: the zip leaves those out
        one.name
        for one, given in zip(formal, node.input, strict=False)
        if given and set(one.types) == {"tensor(float)"}
    ]


def _rename_inside(graph: GraphProto) -> None:
    """Gives the float32 inputs and outputs another name inside, for the half-precision tensor."""
    names = {
        value.name: value.name + HALF
        for value in (*graph.input, *graph.output)
        if value.type.tensor_type.elem_type == TensorProto.FLOAT
    }
    for initializer in graph.initializer:
        initializer.name = names.get(initializer.name, initializer.name)
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]


def _cast_at_the_edges(graph: GraphProto) -> None:
    """First the casts of inputs, last those of outputs: the nodes stay in topological order."""
    for value in graph.input:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            graph.node.insert(0, _cast(value.name, value.name + HALF, TensorProto.FLOAT16))
    for value in graph.output:
        if value.type.tensor_type.elem_type == TensorProto.FLOAT:
            graph.node.append(_cast(value.name + HALF, value.name, TensorProto.FLOAT))


def _cast(source: str, target: str, to: int) -> NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{target}.cast", to=to)


def _halve_weights(graph: GraphProto, model: str) -> None:
    for tensor in graph.initializer:
        _halve(tensor, model, f"weight {tensor.name}")


def _halve_attributes(node: NodeProto, model: str) -> None:
    """Constants, and the type that an operator makes: float32 becomes float16 in both."""
    for part in node.attribute:
        if part.type == AttributeProto.TENSOR:
            _halve(part.t, model, _label(node))
        elif node.op_type == "Constant" and part.name in {"value_float", "value_floats"}:
            values = part.f if part.name == "value_float" else list(part.floats)
            tensor = numpy_helper.from_array(np.asarray(values, np.float32))
            _halve(tensor, model, _label(node))
            part.CopyFrom(helper.make_attribute("value", tensor))
        elif part.name in TYPE_ATTRIBUTES and part.i == TensorProto.FLOAT:
            part.i = TensorProto.FLOAT16


def _halve(tensor: TensorProto, model: str, label: str) -> None:
    """In place, if it is float32."""
    if tensor.data_type != TensorProto.FLOAT:
        return
    values = numpy_helper.to_array(tensor)
    with np.errstate(over="ignore"):
        halves = values.astype(np.float16)
    if lost := np.abs(values[np.isinf(halves) & np.isfinite(values)]).max(initial=0):
        raise InvalidInput(
            f"{model} cannot be fp16: {label} holds {lost:g}, beyond float16's 65504"
        )
    tensor.CopyFrom(numpy_helper.from_array(halves, tensor.name))


def _checked(model: ModelProto, name: str) -> ModelProto:
    """With the types inside inferred again, and passed by ONNX's full check."""
    del model.graph.value_info[:]  # says float32
    try:
        model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise InvalidInput(f"{name} cannot be fp16: {error}") from error
    return model


def _label(node: NodeProto) -> str:
    return f"{node.op_type} {node.name or node.output[0]}"
