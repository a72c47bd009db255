"""The conversion of fp32 ONNX to fp16, against ONNX Runtime on the original."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from tiny import colour_network

from exporters.to_fp16 import convert_fp16
from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import InvalidInput

FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}


def node(kind: str, inputs: str, output: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), [output], name=output, **attributes)


def model(nodes, weights, *, source=TensorProto.UINT8, outputs=(LOGITS,)) -> bytes:
    """A network of 16x16 images, [N, 4] out."""
    graph = helper.make_graph(
        nodes, "small",
        [helper.make_tensor_value_info(INPUT, source, ["N", 16, 16, 3])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in outputs],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    made.metadata_props.add(key="packshot.labels", value="a\nb")
    return onnx.shape_inference.infer_shapes(made).SerializeToString()


def small_network(**changes) -> bytes:
    """With everything that a converter can trip over: constants of each kind, an output inside."""
    random = np.random.default_rng(0)
    weights = {
        "std": np.full(3, 57, np.float32),
        "kernel": random.normal(0, 0.3, (4, 3, 3, 3)).astype(np.float32),
        "flat": np.array([0, -1], np.int64),
        "head": random.normal(0, 0.5, (4, 4)).astype(np.float32),
        "bias": random.normal(0, 0.5, 4).astype(np.float32),
    } | changes
    mean = numpy_helper.from_array(np.array([123, 116, 103], np.float32))
    return model(
        [
            node("Constant", "", "mean", value=mean),
            node("Constant", "", "two", value_float=2.0),
            node("Constant", "", "scales", value_floats=[0.5, 1.0, 1.5, 2.0]),
            node("Cast", INPUT, "floats", to=TensorProto.FLOAT),
            node("Sub", "floats mean", "centred"),
            node("Div", "centred std", "normal"),
            node("Transpose", "normal", "planes", perm=[0, 3, 1, 2]),
            node("Conv", "planes kernel", "conv"),
            node("Relu", "conv", "relu"),
            node("GlobalAveragePool", "relu", "pool"),
            node("Reshape", "pool flat", "row"),
            node("Mul", "row scales", EMBEDDING),
            node("Gemm", f"{EMBEDDING} head bias", "before"),
            node("Mul", "before two", LOGITS),
        ],
        weights,
        outputs=(LOGITS, EMBEDDING),
    )


def answers(path: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    ort = pytest.importorskip("onnxruntime")
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {INPUT: images}), strict=True))


def convert(folder: Path, content: bytes) -> Path:
    (folder / "model.onnx").write_bytes(content)
    convert_fp16(folder / "model.onnx", folder / "model.fp16.onnx")
    return folder / "model.fp16.onnx"


def refused(folder: Path, content: bytes) -> str:
    with pytest.raises(InvalidInput) as caught:
        convert(folder, content)
    assert not (folder / "model.fp16.onnx").exists()
    return str(caught.value)


def types_inside(graph: onnx.GraphProto) -> set[int]:
    """Of all floating-point tensors between the casts at the edges."""
    edges = {value.name for value in (*graph.input, *graph.output)}
    values = {
        value.type.tensor_type.elem_type for value in graph.value_info if value.name not in edges
    }
    return FLOATS & (values | {weight.data_type for weight in graph.initializer})


def test_answers_are_those_of_fp32(tmp_path):
    path = convert(tmp_path, small_network())
    images = np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), np.uint8)
    expected, found = answers(tmp_path / "model.onnx", images), answers(path, images)
    for name in (LOGITS, EMBEDDING):
        assert found[name].dtype == np.float32
        assert np.allclose(found[name], expected[name], atol=0.01)
        assert np.abs(expected[name]).max() > 0.5


def test_everything_inside_is_half_and_the_edges_stay(tmp_path):
    before = onnx.load_model_from_string(small_network())
    after = onnx.load(convert(tmp_path, small_network()))
    assert types_inside(before.graph) == {TensorProto.FLOAT}
    assert types_inside(after.graph) == {TensorProto.FLOAT16}
    assert [one.SerializeToString() for one in after.graph.input] == [
        one.SerializeToString() for one in before.graph.input
    ]
    kinds = {one.name: one.type.tensor_type.elem_type for one in after.graph.output}
    assert kinds == dict.fromkeys((LOGITS, EMBEDDING), TensorProto.FLOAT)
    assert after.metadata_props == before.metadata_props
    assert (after.opset_import, after.ir_version) == (before.opset_import, before.ir_version)
    assert after.graph.node[-1].op_type == "Cast"


def test_a_float_input_is_cast(tmp_path):
    weights = {"axes": np.array([1, 2], np.int64), "head": np.ones((3, 4), np.float32)}
    nodes = [
        node("ReduceMean", f"{INPUT} axes", "mean", keepdims=0),
        node("MatMul", "mean head", LOGITS),
    ]
    path = convert(tmp_path, model(nodes, weights, source=TensorProto.FLOAT))
    images = np.random.default_rng(1).random((2, 16, 16, 3), np.float32)
    expected, found = answers(tmp_path / "model.onnx", images), answers(path, images)
    assert np.allclose(found[LOGITS], expected[LOGITS], atol=0.01)
    assert onnx.load(path).graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT


def test_a_real_resnet_answers_as_before(resnet50, resnet50_fp16):
    images = np.random.default_rng(2).integers(0, 256, (2, 224, 224, 3), np.uint8)
    expected, found = answers(resnet50, images), answers(resnet50_fp16, images)
    for name in (LOGITS, EMBEDDING):
        assert np.abs(found[name] - expected[name]).max() < 0.01 * np.abs(expected[name]).max()
    assert (found[LOGITS].argmax(axis=1) == expected[LOGITS].argmax(axis=1)).all()
    assert types_inside(onnx.load(resnet50_fp16).graph) == {TensorProto.FLOAT16}
    assert resnet50_fp16.stat().st_size < 0.52 * resnet50.stat().st_size


@pytest.mark.parametrize("weight", ["std", "kernel", "bias"])
def test_a_weight_beyond_float16_is_refused(tmp_path, weight):
    original = onnx.load_model_from_string(small_network()).graph.initializer
    (value,) = (numpy_helper.to_array(one).copy() for one in original if one.name == weight)
    value.flat[0] = -70000
    assert f"weight {weight} holds 70000" in refused(tmp_path, small_network(**{weight: value}))


def test_a_constant_beyond_float16_is_refused(tmp_path):
    nodes = [
        node("Constant", "", "large", value_float=1e6),
        node("Cast", INPUT, "floats", to=TensorProto.FLOAT),
        node("Mul", "floats large", LOGITS),
    ]
    assert "Constant large holds 1e+06" in refused(tmp_path, model(nodes, {}))


def test_a_weight_that_is_infinite_on_purpose_stays(tmp_path):
    bias = np.array([-np.inf, 0, 0, 0], np.float32)
    images = np.zeros((1, 16, 16, 3), np.uint8)
    logits = answers(convert(tmp_path, small_network(bias=bias)), images)[LOGITS]
    assert np.isneginf(logits[0, 0])
    assert np.isfinite(logits[0, 1:]).all()


def test_a_quantised_network_is_refused(tmp_path):
    nodes = [
        node("Cast", INPUT, "floats", to=TensorProto.FLOAT),
        node("QuantizeLinear", "floats scale", "levels"),
        node("DequantizeLinear", "levels scale", LOGITS),
    ]
    message = refused(tmp_path, model(nodes, {"scale": np.array(0.1, np.float32)}))
    assert "model.onnx is quantised (QuantizeLinear levels)" in message


def test_control_flow_is_refused(tmp_path):
    value = numpy_helper.from_array(np.ones(4, np.float32))
    result = helper.make_tensor_value_info("one", TensorProto.FLOAT, [4])
    branch = helper.make_graph([node("Constant", "", "one", value=value)], "b", [], [result])
    nodes = [node("If", "yes", LOGITS, then_branch=branch, else_branch=branch)]
    message = refused(tmp_path, model(nodes, {"yes": np.array(True)}))
    assert f"has a subgraph in If {LOGITS}" in message


def test_an_operator_that_takes_float32_only_is_refused(tmp_path):
    nodes = [
        node("Cast", INPUT, "floats", to=TensorProto.FLOAT),
        helper.make_node("Resize", ["floats", "", "twice"], [LOGITS], name="resize"),
    ]
    message = refused(tmp_path, model(nodes, {"twice": np.full(4, 2, np.float32)}))
    assert "Resize resize takes scales as float32 only" in message


def test_an_operator_of_another_domain_is_refused(tmp_path):
    made = onnx.load_model_from_string(small_network())
    made.opset_import.append(helper.make_opsetid("com.example", 1))
    made.graph.node[8].domain = "com.example"
    message = refused(tmp_path, made.SerializeToString())
    assert "Relu relu takes inputs that ONNX does not define" in message


@pytest.mark.parametrize("content", [b"no network", b"", colour_network()[:200]])
def test_what_is_no_onnx_is_refused(tmp_path, content):
    assert "model.onnx is not an ONNX model" in refused(tmp_path, content)
