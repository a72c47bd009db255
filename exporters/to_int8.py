"""fp32 ONNX to INT8: static QDQ with ranges from a calibration, in two placements.

CPU: activations uint8 asymmetric, weights int8 per channel. That combination (U8S8) is the one
which ONNX Runtime turns into a fully fused integer graph on CPUs with VNNI; a symmetric range
leaves float islands and runs slower than fp32.

TENSORRT: everything int8 and symmetric, biases left in float, Q/DQ on what the compute layers read
only: its parser takes nothing else.
"""

import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime as ort
from onnx import helper, numpy_helper
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.calibrate import TensorsData, save_tensors_data
from onnxruntime.quantization.shape_inference import quant_pre_process

from exporters.calibration import Calibration
from packshot.bundle import INPUT
from packshot.errors import AnswersDiffer
from packshot.image import Pixels

COMPUTE = ("Conv", "Gemm", "Add")
LAYERS = ("Conv", "Gemm", "MatMul")
"""Operations with weights."""

BIAS_BATCH = 4


class Placement(NamedTuple):
    """What is quantised, and to which type."""

    activations: QuantType
    operations: tuple[str, ...] | None  # None: all that ONNX Runtime knows to quantise
    options: dict[str, Any]


CPU = Placement(QuantType.QUInt8, None, {})
TENSORRT = Placement(
    QuantType.QInt8,
    COMPUTE,
    {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": list(COMPUTE),
    },
)


def prepare(fp32: Path, prepared: Path) -> None:
    """Writes the fp32 model as quantising wants it: optimised, every shape inferred."""
    quant_pre_process(fp32, prepared, skip_symbolic_shape=True)


def quantize(
    prepared: Path,
    target: Path,
    calibration: Calibration,
    placement: Placement,
    excluded: Sequence[str] = (),
) -> None:
    """Writes `target` from the prepared model. `excluded`: names of nodes that stay in float."""
    data = TensorsData(
        CalibrationMethod.MinMax,
        {
            name: tuple(np.array(end, np.float32) for end in ends)
            for name, ends in calibration.ranges.items()
        },
    )
    with tempfile.TemporaryDirectory(prefix="packshot-int8-") as folder:
        ranges = Path(folder, "ranges.json")
        save_tensors_data(data, ranges)
        quantize_static(
            prepared,
            target,
            None,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=placement.operations,
            activation_type=placement.activations,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=list(excluded),
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=ranges,
            extra_options=placement.options,
        )
    onnx.checker.check_model(target, full_check=True)


def first_and_last(prepared: Path) -> tuple[str, str]:
    """Names of the first and the last layer with weights: quantising them costs most accuracy."""
    names = [node.name for node in onnx.load(prepared).graph.node if node.op_type in LAYERS]
    return names[0], names[-1]


def check_fused(fp32: Path, int8: Path, excluded: Sequence[str] = ()) -> None:
    """ONNX Runtime makes an integer operation of every layer that was quantised.

    One that stays in float between Q and DQ is slower than no quantisation. Raises AnswersDiffer.
    """
    before, after = operations(fp32), operations(int8)
    layers = sum(before[kind] + before[f"Fused{kind}"] for kind in LAYERS)
    in_float = sum(after[kind] + after[f"Fused{kind}"] for kind in LAYERS)
    integer = sum(after[kind] for kind in ("QLinearConv", "QGemm", "QLinearMatMul"))
    if in_float > len(excluded) or integer + in_float != layers:
        raise AnswersDiffer(
            f"ONNX Runtime runs {in_float} of {layers} layers in float and {integer} in INT8; at "
            f"most {len(excluded)} in float are meant: this network cannot be quantised well"
        )


def operations(model: Path) -> Counter[str]:
    """How many nodes of each operation ONNX Runtime runs for the model on this CPU."""
    with tempfile.TemporaryDirectory(prefix="packshot-fused-") as folder:
        options = ort.SessionOptions()
        options.optimized_model_filepath = str(Path(folder, "optimised.onnx"))
        options.log_severity_level = 3  # that the file is for this CPU only is meant
        # The layout that a CPU likes best renames operations, and changes none of them.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        nodes = onnx.load(options.optimized_model_filepath).graph.node
        return Counter(node.op_type for node in nodes)


def correct_bias(
    prepared: Path, corrected: Path, images: Pixels, excluded: Sequence[str] = ()
) -> None:
    """Writes the prepared model with biases that make up for the rounding of the weights.

    Rounded weights W' shift a layer's mean output by (W' - W) E[x]; the bias takes that back
    (Nagel et al., ICCV 2019, section 4.2), with E[x] for each channel as `images` give it.
    `excluded`: names of nodes that stay in float, whose weights are not rounded.
    """
    model = onnx.load(prepared)
    weights = {one.name: one for one in model.graph.initializer}
    layers = [
        node
        for node in model.graph.node
        if node.op_type in ("Conv", "Gemm") and len(node.input) == 3
        if node.name not in excluded and weights.keys() >= set(node.input[1:])
    ]
    means = _channel_means(model, sorted({node.input[0] for node in layers}), images)
    for node in layers:
        weight = _weights_by_output(node, numpy_helper.to_array(weights[node.input[1]]))
        error = _rounded(weight) - weight
        shift = error.reshape(error.shape[0], error.shape[1], -1).sum(axis=2)
        mean = means[node.input[0]]
        groups = len(mean) // shift.shape[1]
        by_group = mean.reshape(groups, -1).repeat(len(shift) // groups, axis=0)
        better = numpy_helper.to_array(weights[node.input[2]]) - (shift * by_group).sum(axis=1)
        # Of its own: layers with equal biases share one after the optimisation.
        node.input[2] = f"{node.output[0]}.corrected_bias"
        model.graph.initializer.append(
            numpy_helper.from_array(better.astype(np.float32), node.input[2])
        )
    _drop_unused(model.graph)
    onnx.save(model, corrected)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    kept = [one for one in graph.initializer if one.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _channel_means(
    model: onnx.ModelProto, tensors: Sequence[str], images: Pixels
) -> dict[str, np.ndarray]:
    """Mean of each channel (axis 1) of each tensor over the images."""
    seeing = onnx.ModelProto()
    seeing.CopyFrom(model)
    known = {output.name for output in seeing.graph.output}
    seeing.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
        for name in tensors
        if name not in known
    )
    session = ort.InferenceSession(seeing.SerializeToString(), providers=["CPUExecutionProvider"])
    sums: dict[str, Any] = dict.fromkeys(tensors, 0.0)
    for start in range(0, len(images), BIAS_BATCH):
        batch = images[start : start + BIAS_BATCH]
        for name, values in zip(tensors, session.run(tensors, {INPUT: batch}), strict=True):
            axes = tuple(axis for axis in range(values.ndim) if axis > 1)
            sums[name] = sums[name] + values.mean(axis=axes).sum(axis=0)
    return {name: total / len(images) for name, total in sums.items()}


def _weights_by_output(node: onnx.NodeProto, weight: np.ndarray) -> np.ndarray:
    """[outputs, inputs, ...]; a Gemm may hold them the other way round."""
    transposed = any(one.name == "transB" and one.i for one in node.attribute)
    return weight if node.op_type == "Conv" or transposed else weight.T


def _rounded(weight: np.ndarray) -> np.ndarray:
    """What int8, symmetric, with a scale for each output, makes of the weights."""
    scales = np.abs(weight).reshape(len(weight), -1).max(axis=1) / 127
    scales = np.maximum(scales, np.finfo(np.float32).tiny).reshape(-1, *[1] * (weight.ndim - 1))
    return (np.clip(np.round(weight / scales), -127, 127) * scales).astype(np.float32)
