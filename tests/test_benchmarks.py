"""What the benchmarks count; never how long something took."""

import itertools
import json
import math
import re
from itertools import islice

import grpc
import numpy as np
import pytest
from PIL import Image
from processes import program
from tiny import PURE, add_openvino, colour_network, jpeg, tiny_bundle

from benchmarks import calm
from benchmarks.figures import Figure, figures_table, missed
from benchmarks.flame import places, titled
from benchmarks.loops import batches, in_lanes
from benchmarks.operations import operations_per_image
from benchmarks.plain_server import plain_pixels
from benchmarks.process import READY, server, started
from benchmarks.reload import write_copy
from benchmarks.series import NAMES
from packshot.bundle import open_bundle
from packshot.image import ImageSpec, load_pixels
from packshot.machine import cpu_flags
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
from serving.engines.openvino import BF16, INSTRUCTIONS, INT8
from trainer.command_line import parse_options
from trainer.data import load_split


def test_resnet50_is_4_1_billion_multiply_adds(resnet50):
    """At 224 pixels; of 5 classes in the place of 1000, which are 2 million fewer."""
    assert operations_per_image(resnet50) / 2 == pytest.approx(4.09e9, rel=0.001)


def test_every_engine_that_runs_here_is_measured_at_every_batch(tmp_path):
    add_openvino(tiny_bundle(tmp_path, int8=colour_network()))
    where = ("--models", tmp_path, "--model", "colours", "--out", tmp_path / "out")
    done = program("benchmarks", *where, "--only", "engines", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(fp32|int8|openvino-int8) +(\d+) .*%$", done.stdout, re.MULTILINE)
    here = ("fp32", "int8", *([INT8] if INSTRUCTIONS[INT8] in cpu_flags() else []))
    assert rows == [(name, str(1 << n)) for name in here for n in range(6)]
    # There is no product in bfloat16 to hold it against.
    without = re.findall(r"^openvino-bf16 +\d+ .* \?$", done.stdout, re.MULTILINE)
    assert len(without) == 6 * (INSTRUCTIONS[BF16] in cpu_flags())


def test_a_gpu_engine_is_held_against_its_own_loop(tmp_path):
    """On the engine of a CPU, where the same is measured and said."""
    tiny_bundle(tmp_path, int8=colour_network())
    where = ("--models", tmp_path, "--model", "colours", "--rounds", 1, "--seconds", 0.5)
    done = program("benchmarks.gpu", *where, "--engine", "int8")
    assert done.returncode == 0, done.stderr
    assert re.search(r"as JPEGs \d+, limited by .+", done.stdout)
    assert "JPEGs served / the engine's loop: throughput" in done.stdout
    refused = program("benchmarks.gpu", *where, "--engine", "tensorrt")
    assert refused.returncode == 1
    assert "nothing to measure: " in refused.stderr
    assert "tensorrt: not in the bundle" in refused.stderr


def test_the_digits_are_written_as_they_are_and_none_is_a_copy(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra dev")
    from benchmarks.digits import write_digits

    assert write_digits(tmp_path) == 1797
    with Image.open(tmp_path / "0" / "0000.png") as first:
        assert first.size == (8, 8)
        levels = np.asarray(first, np.float64) * 16 / 255
    assert levels[0].round().tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    split = load_split(parse_options(["--data", str(tmp_path)]), ImageSpec())
    assert split.labels == tuple("0123456789")
    assert (len(split.train), len(split.val), len(split.test)) == (1439, 179, 179)
    assert split.duplicates.groups == ()


def test_the_plain_server_answers_as_packshot_does(tmp_path):
    bundle = tiny_bundle(tmp_path)
    request = pb.ClassifyRequest(images=[pb.Image(encoded=jpeg(one)) for one in PURE.values()])
    with (
        server(tmp_path, "colours") as ours,
        started("benchmarks.plain_server", str(bundle), "--engine", "fp32") as plain,
    ):
        answers = [_answers(one.target, request) for one in (ours, plain)]
        assert plain.cpu_seconds() > 0
        assert plain.resident_megabytes() > 1
        assert plain.start_seconds > 0
        assert (plain.engine, plain.metrics_url) == ("fp32", None)
        assert ours.metric("packshot_images_total", result="ok") == len(PURE)
        assert ours.metric("packshot_images_total", result="damaged") == 0
    assert [label for label, _ in answers[0]] == list(PURE)
    for (label, probability), (plain_label, plain_probability) in zip(*answers, strict=True):
        assert plain_label == label
        assert plain_probability == pytest.approx(probability, abs=1e-4)


def test_the_engine_and_the_ports_are_read_from_the_line_that_says_ready():
    line = (
        '"event":"ready: model products version 1, engine openvino-int8, on 127.0.0.1:8001, '
        'metrics on http://127.0.0.1:8002/metrics"'
    )
    found = READY.search(line)
    assert found.groups() == (
        "openvino-int8", "127.0.0.1:8001", "http://127.0.0.1:8002/metrics",
    )  # fmt: skip


def test_the_null_server_answers_whatever_it_is_sent_at_once_and_alike(tmp_path):
    tiny_bundle(tmp_path)
    sent = [pb.Image(encoded=content) for content in (jpeg(PURE["red"]), b"no image", bytes(5_000))]
    sent.append(pb.Image(pixels=np.full((224, 224, 3), PURE["red"], np.uint8).tobytes()))
    with server(
        tmp_path, "colours", "--engines", "fp32", module="benchmarks.null_server"
    ) as served:
        answers = _answers(served.target, pb.ClassifyRequest(images=sent))
        assert served.engine == "fp32"
    assert [probability for _, probability in answers] == pytest.approx([1 / 3] * 4)


def _answers(target: str, request: pb.ClassifyRequest) -> list[tuple[str, float]]:
    with grpc.insecure_channel(target) as channel:
        results = ClassifierStub(channel).Classify(request, timeout=10).results
    firsts = [result.predictions[0] for result in results]
    return [(first.label, first.probability) for first in firsts]


def test_the_plain_decoder_sees_the_same_picture():
    """Without packshot's draft, which is a grey level or two away, and with its rounding."""
    photo = jpeg((90, 120, 200), size=(301, 260))
    spec = ImageSpec(draft_short_side=None)
    difference = plain_pixels(photo, spec).astype(int) - load_pixels(photo, spec)
    assert abs(difference).max() <= 1


def test_a_loop_runs_all_images_over_and_over():
    images = [bytes([number]) for number in range(3)]
    three = batches(images, 2, lambda image: np.full((1, 1, 3), image[0], np.uint8), first=1)
    assert [batch[:, 0, 0, 0].tolist() for batch in islice(three, 3)] == [[1, 2], [0, 1], [2, 0]]
    seen: list[int] = []
    measured = in_lanes(lambda batch: seen.append(len(batch)), [three], seconds=0.01)
    assert set(seen) == {2}
    assert measured.images_per_second > 0


def figure(better, bar, *rounds):
    return Figure(name="served / bare", rounds=rounds, better=better, bar=bar)


def test_a_bar_has_a_direction_and_the_median_counts():
    assert figure("higher", 0.9, 0.95, 0.2, 0.91).met is True
    assert figure("higher", 0.9, 0.89).met is False
    assert figure("lower", 1.1, 1.1, 9.0, 1.0).met is True
    assert figure("lower", 0.0, 1.0).met is False
    assert figure("lower", None, 1.0).met is None
    none, met, not_met = figure("lower", None, 1), figure("lower", 1, 1), figure("lower", 1, 2)
    assert missed([none, met, not_met]) == [not_met]


def test_the_table_shows_measured_bar_and_spread():
    time = Figure(name="start to ready", unit="s", rounds=(1.234, 12.34, 123.4), better="lower")
    head, ratio, seconds = figures_table([figure("higher", 0.9, 0.5), time]).splitlines()
    assert head.split() == ["FIGURE", "MEASURED", "BAR", "MET", "ROUNDS", "FROM", "TO"]
    assert ratio.split() == ["served", "/", "bare", "0.50", ">=", "0.90", "no", "0.50", "0.50"]
    assert seconds.split() == ["start", "to", "ready", "12.3", "s", "1.23", "123"]


def test_of_the_set_only_what_is_asked_for_is_run_and_written_down(tmp_path):
    tiny_bundle(tmp_path)
    where = ("--models", tmp_path, "--model", "colours", "--out", tmp_path / "out")
    done = program("benchmarks", *where, "--rounds", 1, "--only", "threads")
    assert done.returncode == 0, done.stderr
    assert re.findall("^== (.*)$", done.stdout, re.MULTILINE) == ["threads"]
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert list(written["benchmarks"]) == ["threads"]
    assert written["failed"] == {}
    assert written["machine"]["cores"] > 0
    assert {"load_before", "load_after", "began", "ended", "commit"} <= written.keys()
    assert "onnxruntime" in written["packages"]
    found = written["benchmarks"]["threads"]
    assert [len(one["rounds"]) for one in found["figures"]] == [1] * 4
    assert len(found["rounds"]) == 1
    for one in found["figures"]:
        assert one["name"] in done.stdout


def test_a_benchmark_that_fails_is_told_and_one_that_is_not_there_is_refused(tmp_path):
    where = ("--models", tmp_path, "--out", tmp_path)
    done = program("benchmarks", *where, "--only", "threads")
    assert done.returncode == 1
    assert "NotFound" in json.loads((tmp_path / "bench.json").read_text())["failed"]["threads"]
    done = program("benchmarks", *where, "--only", "thread")
    assert done.returncode == 2
    assert "serving, plain" in done.stderr


BRIEFLY = (
    "serving", "plain", "pixels", "overhead", "overload", "cold_start", "reload", "preprocessing",
)  # fmt: skip


MAY_BE_NONE = re.compile("late, of those sent|versions swapped under load|cores left")


def test_the_rest_of_the_set_comes_to_its_end(tmp_path):
    """So short that no figure means anything, but each is there, and a number."""
    tiny_bundle(tmp_path, int8=colour_network())
    where = ("--models", tmp_path, "--model", "colours", "--out", tmp_path / "out")
    short = ("--rounds", 1, "--seconds", 0.8, "--images", 2, "--only", ",".join(BRIEFLY))
    done = program("benchmarks", *where, *short)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 benchmarks failed" in done.stdout
    written = json.loads((tmp_path / "out" / "bench.json").read_text())
    assert {*BRIEFLY, "engines", "threads"} == set(NAMES)
    assert list(written["benchmarks"]) == list(BRIEFLY)
    found = {name: one["figures"] for name, one in written["benchmarks"].items()}
    assert {name: len(figures) for name, figures in found.items()} == {
        "serving": 6, "plain": 5, "pixels": 5, "overhead": 4, "overload": 10, "cold_start": 5,
        "reload": 3, "preprocessing": 3,
    }  # fmt: skip
    for figure in itertools.chain.from_iterable(found.values()):
        assert math.isfinite(figure["value"]), figure
        assert figure["value"] > 0 or MAY_BE_NONE.search(figure["name"]), figure


def test_a_copy_to_swap_with_is_a_version_of_its_own(tmp_path):
    bundle = open_bundle(tiny_bundle(tmp_path, int8=colour_network()))
    copies = tmp_path / "copies" / "colours"
    assert [write_copy(bundle, copies, "int8") for _ in range(2)] == [1, 2]
    manifests = [open_bundle(copies / str(version)).manifest for version in (1, 2)]
    assert [one.version for one in manifests] == [1, 2]
    assert [list(one.engines) for one in manifests] == [["int8"], ["int8"]]


def test_disturbed_rounds_are_taken_again_and_the_least_disturbed_fill_up(monkeypatch, capsys):
    stolen_ticks, numbers = iter((50, 0, 30, 0, 90, 80, 70, 10, 0)), itertools.count()
    passed = [0] * 8

    def take() -> int:
        passed[0] += 100
        passed[calm.STEAL] += next(stolen_ticks)
        return next(numbers)

    monkeypatch.setattr(calm, "ticks", lambda: list(passed))
    assert calm.calm_rounds(2, take, str) == [1, 3]
    assert capsys.readouterr().out.startswith("0 [33% of the CPU stolen; set aside]\n1 [0% of")
    # Three are wanted and none of nine is calm: the three least disturbed.
    stolen_ticks, numbers = iter((50, 40, 30, 20, 10, 90, 80, 70, 60)), itertools.count()
    assert calm.calm_rounds(3, take, str) == [2, 3, 4]


def test_a_sample_is_spent_where_its_innermost_known_file_is():
    server = "_run (serving/__main__.py:43);run (uvloop/__init__.py:92);Runner.run (asyncio/x.py:1)"
    folded = f"""\
{server};Pipeline._run (serving/pipeline.py:1);Scheduler.admit (serving/scheduler.py:2) 3
Thread.run (threading.py:9);Lanes._in_thread (serving/lanes.py:8);load_pixels (packshot/image.py:4);draft (PIL/I.py:1) 5
Thread.run (threading.py:9);Lanes._in_thread (serving/lanes.py:8);Session.run (onnxruntime/capi/x.py:3) 7
{server} 2
"""  # noqa: E501
    assert places(folded) == {
        "admission, queue, batches": 3,
        "decode, resize, crop": 5,
        "the engine": 7,
        "event loop and gRPC's Python side": 2,
    }


def test_a_flame_graph_has_a_title_of_ours_and_no_path_of_the_machine():
    svg = (
        '<svg><text id="title" x="1">/home/me/py-spy record</text><text id="details">a</text></svg>'
    )
    expected = '<svg><text id="title" x="1">int8 &lt; load</text><text id="details">a</text></svg>'
    assert titled(svg, "int8 < load") == expected
