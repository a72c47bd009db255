"""INT8: ranges from one pass, ways tried in order, two placements; on a small real network."""

from collections import Counter

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from small_network import photos, write_network

from exporters.calibration import Histograms, read_calibration
from exporters.gates import GATES, Gate, HeldOut, run_in_batches
from exporters.int8_search import Search
from exporters.proof import Work, open_onnx
from exporters.to_int8 import (
    CPU,
    TENSORRT,
    check_fused,
    correct_bias,
    first_and_last,
    operations,
    prepare,
    quantize,
)
from packshot.errors import AnswersDiffer, DamagedFile
from packshot.golden import GoldenSamples

IMAGES = photos(16)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("int8")


@pytest.fixture(scope="module")
def fp32(folder):
    return write_network(folder / "model.onnx")


@pytest.fixture(scope="module")
def prepared(fp32, folder):
    prepare(fp32, folder / "prepared.onnx")
    return folder / "prepared.onnx"


@pytest.fixture(scope="module")
def histograms(prepared, folder):
    return Histograms(prepared, IMAGES, folder)


def answers(path, images=IMAGES, output="logits") -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run([output], {"images": images})[0]


def with_output(path, name: str, target):
    """The same network, giving one of its inner tensors as well."""
    model = onnx.load(path)
    model.graph.output.append(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)
    )
    onnx.save(model, target)
    return target


def test_minmax_is_what_the_tensors_really_held(histograms, prepared, tmp_path):
    seen = answers(with_output(prepared, "relu0", tmp_path / "seeing.onnx"), output="relu0")
    calibration = histograms.calibration("minmax")
    assert calibration.images == len(IMAGES)
    assert calibration.ranges["relu0"] == pytest.approx((seen.min(), seen.max()))


def test_percentile_cuts_what_is_rarer(histograms, prepared, tmp_path):
    seen = answers(with_output(prepared, "conv1", tmp_path / "seeing.onnx"), output="conv1")
    low, high = histograms.calibration("percentile").ranges["conv1"]
    assert (low, high) == pytest.approx(np.percentile(seen, [0.005, 99.995]), rel=0.05)
    assert seen.min() < low < 0 < high < seen.max()


def test_every_method_stays_within_what_was_seen(histograms):
    widest = histograms.calibration("minmax").ranges
    for method in ("percentile", "entropy"):
        ranges = histograms.calibration(method).ranges
        assert ranges.keys() == widest.keys()
        for name, (low, high) in ranges.items():
            assert widest[name][0] <= low <= high <= widest[name][1], (method, name)


def test_chunks_do_not_change_the_ranges(prepared, histograms, folder, monkeypatch):
    monkeypatch.setattr("exporters.calibration.CHUNK_IMAGES", 3)
    chunked = Histograms(prepared, IMAGES, folder).calibration("minmax").ranges
    for name, ends in histograms.calibration("minmax").ranges.items():
        assert chunked[name] == pytest.approx(ends)


def test_int8_answers_nearly_as_fp32_does_and_is_integer_throughout(
    fp32, prepared, histograms, tmp_path
):
    target = tmp_path / "int8.onnx"
    quantize(prepared, target, histograms.calibration("percentile"), CPU)
    expected = answers(fp32)
    assert np.abs(answers(target) - expected).max() < 0.05 * np.ptp(expected)
    check_fused(fp32, target)
    counted = operations(target)
    assert (counted["QLinearConv"], counted["QGemm"], counted["Conv"]) == (3, 1, 0)


@pytest.mark.parametrize("placement", [CPU, TENSORRT])
def test_every_output_of_a_layer_has_a_scale_of_its_own(prepared, histograms, tmp_path, placement):
    quantize(prepared, tmp_path / "int8.onnx", histograms.calibration("minmax"), placement)
    graph = onnx.load(tmp_path / "int8.onnx").graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    made_by = {output: node for node in graph.node for output in node.output}
    layers = [node for node in graph.node if node.op_type == "Conv"]
    assert len(layers) == 3
    for node in layers:
        assert values[made_by[node.input[1]].input[1]].shape == (8,)


def test_layers_left_in_float_are_found_out(fp32, prepared, histograms, tmp_path):
    target = tmp_path / "int8.onnx"
    assert first_and_last(prepared) == ("conv0", "head")
    ends = histograms.calibration("minmax")
    quantize(prepared, target, ends, CPU, excluded=first_and_last(prepared))
    check_fused(fp32, target, excluded=first_and_last(prepared))
    with pytest.raises(AnswersDiffer, match="runs 2 of 4 layers in float and 2 in INT8"):
        check_fused(fp32, target)


def test_the_placement_for_tensorrt_is_symmetric_with_biases_in_float(
    fp32, prepared, histograms, tmp_path
):
    target = tmp_path / "trt.onnx"
    quantize(prepared, target, histograms.calibration("percentile"), TENSORRT)
    graph = onnx.load(target).graph
    values = {one.name: numpy_helper.to_array(one) for one in graph.initializer}
    points = [
        values[node.input[2]]
        for node in graph.node
        if node.op_type in ("QuantizeLinear", "DequantizeLinear")
    ]
    assert {point.dtype for point in points} == {np.dtype(np.int8)}
    assert not any(point.any() for point in points)
    layers = [node for node in graph.node if node.op_type in ("Conv", "Gemm")]
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    assert len(layers) == 4
    for node in layers:
        assert made_by[node.input[0]] == made_by[node.input[1]] == "DequantizeLinear"
        assert values[node.input[2]].dtype == np.float32
    expected = answers(fp32)
    assert np.abs(answers(target) - expected).max() < 0.05 * np.ptp(expected)


def test_corrected_biases_take_back_the_shift_of_rounded_weights(tmp_path):
    """Coarse weights: three large ones make the rounding of all others lean to one side."""
    fp32 = write_network(tmp_path / "model.onnx", bias=0.5)
    model = onnx.load(fp32)
    for one in model.graph.initializer:
        if one.name in ("w1", "w2"):
            weight = numpy_helper.to_array(one).copy()
            weight[:, 0, 0, 0] = 40.0  # a step of 0.31: the others round to a few values
            weight.reshape(len(weight), -1)[:, 1:] = 0.1
            one.CopyFrom(numpy_helper.from_array(weight, one.name))
    onnx.save(model, fp32)
    prepared, corrected = tmp_path / "prepared.onnx", tmp_path / "corrected.onnx"
    prepare(fp32, prepared)
    correct_bias(prepared, corrected, IMAGES)
    calibration = Histograms(prepared, IMAGES, tmp_path).calibration("minmax")
    quantize(prepared, tmp_path / "plain.onnx", calibration, CPU)
    quantize(corrected, tmp_path / "better.onnx", calibration, CPU)
    expected = answers(fp32, output="embedding").mean(axis=0)
    off = [
        np.abs(answers(tmp_path / name, output="embedding").mean(axis=0) - expected).mean()
        for name in ("plain.onnx", "better.onnx")
    ]
    assert off[1] < 0.25 * off[0]


def test_layers_that_stay_in_float_keep_their_biases(fp32, prepared, tmp_path):
    ends = first_and_last(prepared)
    correct_bias(prepared, tmp_path / "corrected.onnx", IMAGES, excluded=ends)
    graph = onnx.load(tmp_path / "corrected.onnx").graph
    biases = {node.name: node.input[2] for node in graph.node if node.name in ("conv1", *ends)}
    assert biases["conv1"].endswith(".corrected_bias")
    assert not any(biases[name].endswith(".corrected_bias") for name in ends)


def test_the_search_corrects_no_layer_that_it_leaves_in_float(fp32, tmp_path, monkeypatch):
    left_alone = []
    monkeypatch.setattr(
        "exporters.int8_search.correct_bias",
        lambda *given: (left_alone.append(given[3]), correct_bias(*given)),
    )
    impossible = Gate(min_agreement=0.0, max_accuracy_drop=1.0, max_logit_difference=1e-9)
    search = Search(work_on(fp32, tmp_path, impossible), fp32, IMAGES, tmp_path)
    with pytest.raises(AnswersDiffer):
        search.run(tmp_path / "int8.onnx", CPU)
    assert left_alone == [("conv0", "head")]


def work_on(fp32, folder, gate: Gate) -> Work:
    engine = open_onnx(fp32)
    logits = run_in_batches(engine, IMAGES)
    engine.close()
    return Work(
        folder=folder,
        golden=GoldenSamples(encoded=(), pixels=IMAGES[:4], logits=logits[:4]),
        held_out=HeldOut(images=IMAGES, logits=logits, truth=logits.argmax(axis=1)),
        temperature=1.0,
        gates={**GATES, "int8": gate},
    )


def test_the_first_way_that_passes_is_kept(fp32, tmp_path):
    work = work_on(fp32, tmp_path, GATES["int8"])
    target = tmp_path / "int8.onnx"
    way, attempts = Search(work, fp32, IMAGES, tmp_path).run(target, CPU)
    assert str(way) == "percentile 99.99"
    assert [(one.way, one.fault) for one in attempts] == [("percentile 99.99", "")]
    assert operations(target)["QLinearConv"] == 3


def test_every_lever_is_tried_in_order_and_named_when_none_passes(fp32, tmp_path, capsys):
    impossible = Gate(min_agreement=0.0, max_accuracy_drop=1.0, max_logit_difference=1e-9)
    search = Search(work_on(fp32, tmp_path, impossible), fp32, IMAGES, tmp_path)
    with pytest.raises(AnswersDiffer, match="no way to quantise passes") as caught:
        search.run(tmp_path / "int8.onnx", CPU)
    told = str(caught.value)
    ways = ["percentile 99.99:", "entropy:", "minmax:", "float:", "float, biases corrected:"]
    places = [told.index(way) for way in ways]
    assert places == sorted(places)
    assert Counter(told)["|"] == 10  # each with its largest |logit difference|
    assert not (tmp_path / "int8.onnx").exists()
    assert "int8, entropy: largest |logit difference|" in capsys.readouterr().out


def test_a_later_way_is_kept_with_those_that_failed_before_it(fp32, tmp_path):
    """A gate between what the methods and what float ends reach."""
    strict = Gate(min_agreement=0.0, max_accuracy_drop=1.0, max_logit_difference=1e-9)
    search = Search(work_on(fp32, tmp_path, strict), fp32, IMAGES, tmp_path)
    with pytest.raises(AnswersDiffer) as caught:
        search.run(tmp_path / "int8.onnx", CPU)
    found = [float(part.split(",")[0]) for part in str(caught.value).split("difference| ")[1:]]
    between = (min(found[:3]) + min(found[3:])) / 2
    assert min(found[3:]) < min(found[:3])
    lenient = msgspec.structs.replace(strict, max_logit_difference=between)
    search = Search(work_on(fp32, tmp_path, lenient), fp32, IMAGES, tmp_path)
    way, attempts = search.run(tmp_path / "int8.onnx", CPU)
    assert way.float_ends
    assert [bool(one.fault) for one in attempts] == [True] * (len(attempts) - 1) + [False]
    assert operations(tmp_path / "int8.onnx")["QLinearConv"] == 2


def test_a_calibration_is_read_as_it_was_written(histograms, tmp_path):
    calibration = histograms.calibration("minmax")
    (tmp_path / "calibration.json").write_bytes(msgspec.json.encode(calibration))
    assert read_calibration(tmp_path / "calibration.json") == calibration
    (tmp_path / "calibration.json").write_bytes(b"{}")
    with pytest.raises(DamagedFile, match="does not hold the ranges"):
        read_calibration(tmp_path / "calibration.json")
