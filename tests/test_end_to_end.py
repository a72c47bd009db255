"""The main job on the real network: folder, training, export, server, client, metrics, SIGTERM."""

import shutil
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image
from processes import ROOT, TIMEOUT, environment, program, serving, until

from exporters.gates import GATES
from exporters.source import golden_examples, load_source
from packshot import Client
from packshot.bundle import open_bundle
from packshot.store import versions
from trainer.batches import served_views
from trainer.checkpoint import load_checkpoint, load_split_of, read_record, save_record
from trainer.evaluate import predict
from trainer.sample import draw_catalogue

# Two kinds of products, each under a light of its own: a few steps are enough to tell them apart.
LIGHTS = {"glasses": (220, 40, 40), "tshirt": (40, 60, 220)}
LABELS = tuple(LIGHTS)


def draw_two_classes(folder: Path) -> None:
    draw_catalogue(folder, counts={"train": 24, "val": 4, "test": 16})
    for kind in folder.glob("*/*"):
        if kind.name not in LIGHTS:
            shutil.rmtree(kind)
    for path in folder.rglob("*.jpg"):
        with Image.open(path) as picture:
            light = Image.new("RGB", picture.size, LIGHTS[path.parent.name])
            lit = Image.blend(picture, light, 0.4)
        lit.save(path, quality=90)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A real ResNet-50 after a few steps."""
    folder = tmp_path_factory.mktemp("end-to-end")
    draw_two_classes(folder / "data")
    done = program(
        "trainer", "--data", folder / "data", "--run", folder / "run", "--weights", "none",
        "--epochs", 7, "--batch-size", 16, "--yes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.fixture(scope="module")
def store(run: Path) -> Path:
    store = run.parent / "models"
    done = program(
        "exporters", "--run", run, "--models", store, "--model", "shop", "--calibration-images", 16
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip().endswith(f"bundle in {store / 'shop' / '1'}")
    return store


def test_the_checkpoint_is_a_resnet50_and_its_report_tells_how_it_was_made(run):
    record, network = load_checkpoint(run)
    assert record.architecture == "resnet50"
    assert record.labels == LABELS
    assert record.weights == (False, "random")
    assert sum(p.numel() for p in network.backbone.parameters()) == 23_508_032
    assert record.test.images == 32
    report = (run / "report.html").read_text()
    assert "Trained from random" in report
    assert f"{record.test.accuracy:.1%}" in report


def test_the_bundle_carries_measured_proof(store):
    bundle = open_bundle(store / "shop" / "1")
    fp32 = bundle.manifest.engines["fp32"].measured
    assert fp32.images == 40
    assert fp32.agreement == 1.0
    assert 0 < fp32.max_logit_difference <= 1e-3
    assert bundle.manifest.provenance["weights_from"] == "random"
    assert bundle.manifest.left_out == {}
    assert bundle.manifest.engines["int8"].measured.agreement >= GATES["int8"].min_agreement
    assert (bundle.folder / "report.html").is_file()


def test_the_onnx_file_takes_pixels_of_any_number_of_images(store):
    model = onnx.load(store / "shop" / "1" / "model.onnx")
    (images,) = model.graph.input
    assert images.name == "images"
    assert images.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    sizes = [dim.dim_param or dim.dim_value for dim in images.type.tensor_type.shape.dim]
    assert sizes == ["N", 224, 224, 3]
    assert [output.name for output in model.graph.output] == ["logits", "embedding"]
    assert {p.key for p in model.metadata_props} >= {"packshot.labels", "packshot.image"}


def test_the_int8_graph_is_integer_throughout(store, tmp_path):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    path = store / "shop" / "1" / "model.int8.onnx"
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    nodes = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert nodes["QLinearConv"] == 53
    assert nodes["QLinearAdd"] == 16
    assert nodes["Conv"] + nodes["FusedConv"] == 0


def test_a_run_cut_short_is_measured_before_it_is_exported(run, tmp_path, capsys):
    cut = tmp_path / "run"
    shutil.copytree(run, cut)
    (cut / "report.html").unlink()
    record = msgspec.structs.replace(read_record(cut), finished=False, test=None)
    save_record(cut, record)
    source = load_source(cut, None)
    assert source.checkpoint.test == read_record(run).test
    assert (cut / "report.html").exists()


def test_golden_samples_take_the_classes_in_turn(run):
    split = load_split_of(run, read_record(run))
    chosen = golden_examples(split)
    assert [example.label for example in chosen] == [0, 1] * 8
    sizes = [Path(split.folder, example.file).stat().st_size for example in chosen[::2]]
    assert sizes == sorted(sizes)


@pytest.mark.parametrize("engine", ["fp32", "int8"])
def test_what_is_served_is_what_was_trained(run, store, engine):
    record, network = load_checkpoint(run)
    split = load_split_of(run, record)
    views = served_views(split, split.held_out, record.image)
    expected = predict(network, views)
    files = [Path(split.folder, example.file) for example in split.held_out]
    manifest = open_bundle(store / "shop" / "1").manifest
    with (
        serving("--models", store, "--engines", engine) as server,
        Client(server.target, timeout_seconds=TIMEOUT) as client,
    ):
        results = client.classify(files, include_logits=True)
        served = np.array([result.logits for result in results])
        assert {result.engine for result in results} == {engine}
        ok = server.metric('packshot_images_total{model="shop",result="ok"}')
        assert ok == len(files)
        assert server.metric('packshot_stage_seconds_count{model="shop",stage="infer"}') > 0
        assert server.stop(signal.SIGTERM) == 0
    measured = manifest.engines[engine].measured
    agreement = (served.argmax(axis=1) == expected.argmax(axis=1)).mean()
    assert agreement >= GATES[engine].min_agreement
    assert agreement == pytest.approx(measured.agreement)
    if engine == "fp32":
        assert np.abs(served - expected).max() <= 1e-3
    assert all(
        result.label == manifest.labels[row.argmax()]
        for result, row in zip(results, served, strict=True)
    )


HALF = "m/.unfinished-1-*/golden.npz"


def exporter(run: Path, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "exporters", "--run", run, "--models", store, "--model", "m"]
    return subprocess.Popen(
        list(map(str, command)), cwd=ROOT, env=environment(), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def test_an_exporter_killed_while_writing_leaves_no_version(run, tmp_path):
    exporting = exporter(run, tmp_path)
    until(lambda: exporting.poll() is not None or list(tmp_path.glob(HALF)))
    assert exporting.poll() is None, exporting.stderr.read()
    exporting.kill()
    exporting.communicate()
    assert list(tmp_path.glob(HALF))
    assert versions(tmp_path / "m") == []


def test_an_exporter_on_a_full_disk_says_so_and_leaves_nothing(run, tmp_path):
    script = (
        "import resource, runpy, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        "sys.argv = ['exporters', *sys.argv[1:]]\n"
        "runpy.run_module('exporters', run_name='__main__')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "--run", run, "--models", tmp_path, "--model", "m"],
        cwd=ROOT, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "nothing was written" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_exporter_without_a_checkpoint_says_what_to_do(tmp_path):
    done = program("exporters", "--run", tmp_path / "none", "--models", tmp_path / "models")
    assert done.returncode == 1
    assert "run `make train`" in done.stderr
    assert not (tmp_path / "models").exists()
