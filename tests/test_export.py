"""From a checkpoint to bundles: what they hold, what stays out, and engines added elsewhere."""

import hashlib
import shutil
import subprocess
import sys
from functools import partial
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from processes import ROOT, environment, program, serving
from small_network import photos, write_network

from exporters import making
from exporters.add_engine import add_engine as add_engine_here
from exporters.add_engine import next_manifest
from exporters.card import with_hops
from exporters.command_line import AddOptions, ExportOptions, parse_options
from exporters.export import export as export_here
from exporters.export import new_manifest
from exporters.gates import GATES, Gate, HeldOut, run_in_batches
from exporters.int8_search import read_ways
from exporters.making import Maker, make_all
from exporters.plan_options import PlanOptions
from exporters.proof import Work, open_onnx
from exporters.source import calibration_images, load_source
from exporters.speed import speed_up, timings
from exporters.version import read_report
from packshot import Client
from packshot.audit import faults
from packshot.bundle import Timing, open_bundle, read_manifest
from packshot.errors import AnswersDiffer, DamagedFile, EngineRefused, InvalidInput, NotFound
from packshot.golden import GoldenSamples
from packshot.machine import cpu_flags
from packshot.plan import Profile, read_sidecar
from packshot.store import versions
from serving.engines.open import EngineChoice, open_engine
from serving.engines.openvino import BF16, INSTRUCTIONS, INT8, check_openvino
from trainer.checkpoint import read_record, save_record
from trainer.sample import draw_catalogue

pytest.importorskip("tensorrt_rtx", reason="there is no wheel for this platform")

PLANS = ("--targets", "portable")
# OpenVINO's engines come along unasked where the CPU is one for them.
BF16_HERE, INT8_HERE = (
    [name] if INSTRUCTIONS[name] in cpu_flags() else [] for name in (BF16, INT8)
)


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A ResNet-18 after one step."""
    folder = tmp_path_factory.mktemp("export")
    draw_catalogue(folder / "data", counts={"train": 3, "val": 2, "test": 1})
    done = program(
        "trainer", "--data", folder / "data", "--run", folder / "run", "--arch", "resnet18",
        "--weights", "none", "--epochs", 1, "--batch-size", 24, "--yes",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return folder / "run"


def export(run: Path, store: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return program(
        "exporters", "--run", run, "--models", store, "--model", "shop",
        "--calibration-images", 8, *options,
    )  # fmt: skip


def add_engine(store: Path, *options: object) -> subprocess.CompletedProcess[str]:
    return program(
        "exporters", "add-engine", "--models", store, "--model", "shop", "--build-logs", store,
        *options,
    )  # fmt: skip


@pytest.fixture(scope="module")
def store(run) -> Path:
    store = run.parent / "models"
    # One step gives a network that tells hardly anything apart: INT8 may change what it says.
    done = export(
        run, store, "--engines", "fp32,int8,trt-fp16,trt-int8", *PLANS, "--require", "int8",
        "--gate-int8-agreement", 0, "--gate-int8-drop", 1, "--gate-fp16-agreement", 0.5,
        "--gate-fp16-drop", 1, "--gate-bf16-agreement", 0.5, "--gate-bf16-drop", 1,
        "--compiled-models", run.parent / "compiled",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "exported in" in done.stdout
    assert "GB of memory" in done.stdout
    assert done.stdout.rstrip().endswith(f"bundle in {store / 'shop' / '1'}")
    return store


@pytest.fixture(scope="module")
def bundle(store):
    return open_bundle(store / "shop" / "1")


def test_every_engine_is_in_the_manifest_with_its_proof(bundle):
    engines = bundle.manifest.engines
    plans = ["trt-fp16.portable", "trt-int8.portable"]
    assert list(engines) == ["fp32", *BF16_HERE, "int8", *INT8_HERE, *plans]
    for name, engine in engines.items():
        measured = engine.measured
        assert measured.images == 24, name
        assert measured.agreement_interval[0] < measured.agreement or measured.agreement == 0
        assert measured.accuracy_drop_interval[0] < measured.accuracy_drop_interval[1]
        assert measured.kl_divergence >= -1e-9
        assert engine.tolerance > 0
    assert engines["fp32"].measured.max_logit_difference <= 1e-3
    assert engines["int8"].caveat == ""  # the gate asks for nothing
    assert "agreement may be as low as" in engines["trt-fp16.portable"].caveat or (
        engines["trt-fp16.portable"].measured.agreement_interval[0] >= 0.5
    )


def test_what_ran_here_is_timed_and_what_did_not_says_so(bundle):
    engines = bundle.manifest.engines
    for name in ("fp32", "int8"):
        assert engines[name].proved_by == "engine"
        assert [one.batch for one in engines[name].timings] == [1, 8, 32]
        assert "cores" in engines[name].timed_on
    for name in ("trt-fp16.portable", "trt-int8.portable"):
        assert engines[name].proved_by == "source"
        assert engines[name].timings == ()


@pytest.mark.parametrize("name", [*INT8_HERE, *BF16_HERE])
def test_a_servers_first_start_here_finds_what_was_compiled(run, bundle, monkeypatch, name):
    def compile_anew(*_: object) -> None:
        raise AssertionError("it was not found")

    monkeypatch.setattr("serving.engines.openvino._compile", compile_anew)
    folder = run.parent / "compiled"
    choice = EngineChoice(order=(name,), lanes=2, max_batch=2, compiled_folder=folder)
    opened = open_engine(bundle, choice)
    assert opened.engine.name == name
    opened.engine.close()


def test_int8_engines_keep_the_ways_that_were_tried(bundle):
    for name in ("int8", "trt-int8.portable"):
        attempts = bundle.manifest.engines[name].attempts
        assert attempts[0].way == "percentile 99.99"
        assert attempts[-1].fault == ""
    made_with = bundle.manifest.engines["int8"].made_with
    assert made_with["calibration"] == "percentile 99.99; 8 training images"
    ways = read_ways(bundle.folder / "calibration.json")
    assert list(ways) == ["int8", "trt-int8"]
    assert {way.calibration.images for way in ways.values()} == {8}


def test_a_plan_lies_beside_its_sidecar(bundle, run):
    for name in ("trt-fp16.portable", "trt-int8.portable"):
        plan = bundle.folder / f"model.{name}.plan"
        sidecar = read_sidecar(plan.with_name(plan.name + ".json"))
        assert sidecar.flavour == "tensorrt_rtx"
        assert sidecar.sha256 == bundle.manifest.files[plan.name]
        assert sidecar.profiles == (Profile(min_batch=1, opt_batch=8, max_batch=32),)
        assert (run / f"{name}.log").stat().st_size > 1000
    assert faults(bundle.folder) == []


class Texts(HTMLParser):
    """The cells of a page's tables, and whether every table, row and cell is closed."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        if tag in ("table", "tr", "td", "th"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        if tag in ("table", "tr", "td", "th"):
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


def test_the_model_card_shows_the_hops(bundle):
    page = Texts((bundle.folder / "report.html").read_text())
    assert page.open == []
    rows = {row[0]: row for row in page.rows if row}
    for name, engine in bundle.manifest.engines.items():
        size = (bundle.folder / engine.file).stat().st_size
        answers = next(row for row in page.rows if row[0] == name)
        assert answers[1] == f"{size / 1e6:.1f}"
        assert answers[2].startswith(f"{engine.measured.agreement:.2%}")
        assert answers[3] == f"{engine.measured.accuracy:.2%}"
        assert answers[-1] == ("itself" if engine.proved_by == "engine" else "its source")
    assert rows["PyTorch checkpoint"][3] == (
        f"{bundle.manifest.engines['fp32'].measured.pytorch_accuracy:.2%}"
    )
    milliseconds = bundle.manifest.engines["int8"].timings[1].milliseconds
    assert rows["int8"][2] == f"{milliseconds:.1f}"  # the last row of that name: speed
    assert rows["int8: percentile 99.99"][4] == "passed"


def test_the_onnx_file_says_what_it_was_made_from(bundle, run):
    record = read_record(run)
    found = {one.key: one.value for one in onnx.load(bundle.folder / "model.onnx").metadata_props}
    assert found["packshot.labels"] == "\n".join(record.labels)
    assert found["packshot.labels_sha256"] == bundle.manifest.files["labels.txt"]
    image = msgspec.json.encode(bundle.manifest.image)
    assert found["packshot.image_sha256"] == hashlib.sha256(image).hexdigest()
    assert found["packshot.weights_sha256"] == record.weights_sha256


def test_another_runtime_gives_the_same_answers(bundle):
    """ONNX's own reference, in NumPy."""
    golden = bundle.golden()
    model = onnx.load(bundle.folder / "model.onnx")
    assert {one.domain for one in model.opset_import} == {""}
    logits, embedding = ReferenceEvaluator(model).run(None, {"images": golden.pixels[:1]})
    assert np.abs(logits - golden.logits[:1]).max() <= 1e-3
    assert embedding.shape == (1, bundle.manifest.embedding_width)


def test_a_server_without_the_gpu_says_why_the_plans_do_not_run(store):
    with serving("--models", store) as server, Client(server.target) as client:
        model = client.model()
    assert model.engine in (*INT8_HERE, "int8", "cuda")
    # Of a machine without a GPU, or with another than those that the plans are for.
    assert any(word in model.refused["tensorrt"] for word in ("driver", "GPU", "needed", "load"))


def test_an_engine_is_added_without_pytorch_and_the_rest_is_shared(store):
    script = (
        "import runpy, sys\n"
        "try: runpy.run_module('exporters', run_name='__main__')\n"
        "finally: print('torch' in sys.modules, file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "add-engine", "--models", store, "--model", "shop",
         "--engines", "trt-int8,trt-fp16", "--targets", "8.6", "--build-logs", store,
         "--gate-int8-agreement", "0", "--gate-fp16-agreement", "0.5", "--version", "1"],
        cwd=ROOT, env=environment(), text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.rstrip().endswith("False")
    assert "golden samples stand for held-out images" in done.stdout
    version = int(Path(done.stdout.rstrip().rsplit(" ", 1)[1]).name)
    before, after = (read_manifest(store / "shop" / str(number)) for number in (1, version))
    added = ["trt-int8.rtx-sm86", "trt-fp16.rtx-sm86"]
    assert list(after.engines) == [*before.engines, *added]
    for name in added:
        measured = after.engines[name].measured
        assert (measured.images, measured.accuracy) == (16, None)
    folders = (store / "shop" / "1", store / "shop" / str(version))
    for name in ("model.onnx", "model.int8.onnx", "model.trt-fp16.portable.plan", "golden.npz"):
        first, second = (folder / name for folder in folders)
        assert first.samefile(second)
    assert faults(folders[0]) == faults(folders[1]) == []
    page = Texts((folders[1] / "report.html").read_text())
    assert [row[0] for row in page.rows].count("trt-fp16.rtx-sm86") == 1
    assert [row[0] for row in page.rows].count("trt-fp16.portable") == 1


def test_building_a_plan_again_leaves_the_earlier_version_as_it_was(store):
    plan = store / "shop" / "1" / "model.trt-fp16.portable.plan"
    before = plan.read_bytes()
    done = add_engine(
        store, *PLANS, "--profile", "1,2,4", "--gate-fp16-agreement", 0.5, "--version", 1
    )
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.rstrip().rsplit(" ", 1)[1])
    sidecar = read_sidecar(folder / "model.trt-fp16.portable.plan.json")
    assert sidecar.profiles == (Profile(min_batch=1, opt_batch=2, max_batch=4),)
    assert plan.read_bytes() == before
    assert faults(folder) == []


def test_an_engine_that_cannot_be_added_leaves_no_version(store):
    there = versions(store / "shop")
    done = add_engine(store, "--targets", "9.0")
    assert done.returncode == 1
    assert "no engine was added: trt-fp16: " in done.stderr
    assert "does not build for compute capability 9.0; it does for" in done.stderr
    assert versions(store / "shop") == there


def small_maker(
    tmp_path: Path, *targets: str, gates: dict[str, Gate] | None = None, **plan: object
) -> Maker:
    """Makes engines of a small network, for GPUs of these compute capabilities."""
    folder, workshop = tmp_path / "version", tmp_path / "workshop"
    folder.mkdir()
    workshop.mkdir()
    write_network(folder / "model.onnx")
    images = photos(8)
    engine = open_onnx(folder / "model.onnx")
    logits = run_in_batches(engine, images)
    engine.close()
    work = Work(
        folder=folder,
        golden=GoldenSamples(encoded=(), pixels=images, logits=logits),
        held_out=HeldOut(images=images, logits=logits),
        temperature=1.0,
        gates={**GATES, **(gates or {})},
    )
    return Maker(
        work,
        workshop,
        plan=PlanOptions(targets=targets, **plan),
        logs=tmp_path,
        images=lambda: images,
    )


def test_what_cannot_be_built_is_left_out_and_told(tmp_path, capsys):
    maker = small_maker(tmp_path, "9.0")
    made, left_out, _ = make_all(maker, ["trt-fp16", "int8"], required=["int8"])
    assert list(made) == ["int8", *INT8_HERE]
    assert "compute capability 9.0" in left_out["trt-fp16"]
    assert "WARNING: trt-fp16 is left out: " in capsys.readouterr().out
    files = {path.name for path in (tmp_path / "version").iterdir()}
    assert files == {"model.onnx", "model.int8.onnx", "calibration.json"}


def test_a_required_engine_that_is_left_out_fails_all(tmp_path):
    with pytest.raises(InvalidInput, match=r"compute capability 9\.0"):
        make_all(small_maker(tmp_path, "9.0"), ["int8", "trt-fp16"], required=["trt-fp16"])


@pytest.fixture
def openvino(monkeypatch):
    """What is proved; the CPU must be one for it, as elsewhere bfloat16 may not run at all."""
    if not (BF16_HERE and INT8_HERE):
        pytest.skip("this CPU has no VNNI or no bfloat16")
    monkeypatch.setattr(making, "check_openvino", lambda _name: "2026.4")


def test_openvino_proves_the_files_of_fp32_and_int8_for_itself(tmp_path, openvino, capsys):
    made, left_out, _ = make_all(small_maker(tmp_path, "9.0"), ["fp32", "int8"], required=[])
    files = {name: (file.file, file.precision) for name, file in made.items()}
    assert files == {
        BF16: ("model.onnx", "bf16"), "int8": ("model.int8.onnx", "int8"),
        INT8: ("model.int8.onnx", "int8"),
    }  # fmt: skip
    assert left_out == {}
    assert made[INT8].made_with == {"openvino": "2026.4"}
    told = capsys.readouterr().out
    for file, engine in (("model.onnx", BF16), ("model.int8.onnx", INT8)):
        assert f"{file} by {engine}: " in told


def test_openvino_that_fails_its_gate_is_left_out_alone(tmp_path, openvino):
    gates = {"bf16": Gate(min_agreement=1.1, max_accuracy_drop=0.0)}
    made, left_out, _ = make_all(small_maker(tmp_path, "9.0", gates=gates), ["fp32"], required=[])
    assert (made, list(left_out)) == ({}, [BF16])
    assert "top-1 agreement 100.00%" in left_out[BF16]
    assert "model.onnx by openvino-bf16" in left_out[BF16]


def test_openvino_int8_needs_a_file_to_run(tmp_path, openvino):
    made, left_out, _ = make_all(small_maker(tmp_path, "9.0"), [INT8], required=[])
    assert (made, left_out) == (
        {}, {INT8: "there is no INT8 model to run: add int8 to --engines"},
    )  # fmt: skip


class Recorded:
    """In the place of a Maker: fails what it is told to, and keeps the order."""

    def __init__(self, *failing: str) -> None:
        self.asked: list[str] = []
        self._failing = failing

    def make(self, engine: str) -> tuple[str, str]:
        self.asked.append(engine)
        if engine in self._failing:
            raise AnswersDiffer(f"{engine} lost answers")
        return engine, "file"


@pytest.mark.parametrize(
    "asked", [["fp32", INT8, "int8"], ["int8", INT8, "fp32"], ["fp32", "int8"]]
)
def test_openvino_comes_after_what_it_runs_in_whatever_order_it_is_asked_for(asked):
    maker = Recorded()
    make_all(maker, asked, required=[])
    assert sorted(maker.asked) == ["int8", BF16, INT8]
    assert maker.asked.index("int8") < maker.asked.index(INT8)


def test_openvino_int8_falls_with_its_file_and_says_so():
    made, left_out, _ = make_all(Recorded("int8"), ["int8"], required=[])
    assert (made, left_out) == (
        {}, {"int8": "int8 lost answers", INT8: "int8 is left out: int8 lost answers"},
    )  # fmt: skip
    with pytest.raises(EngineRefused, match="int8 is left out"):
        make_all(Recorded("int8"), ["int8", INT8], required=[INT8])


def test_another_cpu_leaves_openvino_to_the_server(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(making, "check_openvino", partial(check_openvino, flags=tuple))
    assert make_all(small_maker(tmp_path, "9.0"), ["fp32"], required=[]) == ({}, {}, [BF16])
    assert f"{BF16} is not measured here: this CPU has no avx512_bf16" in capsys.readouterr().out


def test_figures_of_openvino_go_with_the_int8_file_that_they_were_of(bundle):
    before = msgspec.structs.replace(
        bundle.manifest, engines={**bundle.manifest.engines, INT8: bundle.manifest.engines["int8"]}
    )
    made = {"int8": bundle.manifest.engines["int8"]}
    after = next_manifest(before, 2, made, ["int8"], {})
    assert INT8 not in after.engines
    assert INT8 in next_manifest(before, 2, {**made, INT8: made["int8"]}, ["int8"], {}).engines


def test_why_openvino_failed_goes_with_the_file_that_it_failed_on(bundle):
    engines = bundle.manifest.engines
    before = msgspec.structs.replace(
        bundle.manifest, engines={"fp32": engines["fp32"]}, left_out={INT8: "72 %"}
    )
    made = {"int8": engines["int8"]}
    assert next_manifest(before, 2, made, ["int8"], {}).left_out == {}
    # It was asked for, and could not run here: what was found out elsewhere still holds.
    assert next_manifest(before, 2, {}, [], {}).left_out == {INT8: "72 %"}


def test_an_exported_network_gathers_nothing_by_computed_indices(bundle):
    """OpenVINO once read such a graph wrongly, and it is no part of a ResNet."""
    kinds = {node.op_type for node in onnx.load(bundle.folder / "model.onnx").graph.node}
    assert {"Conv", "ReduceMean", "Gemm"} <= kinds
    assert not kinds & {"Gather", "Range", "Shape", "Slice"}


def test_openvino_reads_an_exported_int8_network_as_onnx_runtime_does(bundle):
    pixels = bundle.golden().pixels
    by_ort, by_openvino = (
        run_in_batches(open_onnx(bundle.engine_path("int8"), name), pixels)
        for name in ("int8", INT8)
    )
    off = bundle.manifest.engines["int8"].measured.max_logit_difference
    # Both round, each in its own way, but not as far apart as INT8 is from fp32.
    assert np.abs(by_openvino - by_ort).max() < off / 2


def test_the_card_tells_what_is_left_out_and_is_written_anew(bundle):
    sizes = dict.fromkeys(bundle.manifest.engines, 1_000_000)
    page = (bundle.folder / "report.html").read_text()
    left_out = msgspec.structs.replace(bundle.manifest, left_out={"int8": "lost 5 < 9 answers"})
    again = with_hops(page, left_out, sizes)
    assert "int8 is left out: lost 5 &lt; 9 answers" in again
    assert again.count("from the checkpoint to what is served") == 1
    assert with_hops(again, bundle.manifest, sizes) == with_hops(page, bundle.manifest, sizes)


def test_answers_abstain_by_the_runs_threshold_unless_another_is_asked_for(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    save_record(copy, msgspec.structs.replace(read_record(run), min_confidence=0.62))
    source = load_source(copy, None)
    for asked, expected in (((), 0.62), (("--min-confidence", "0.7"), 0.7)):
        manifest = new_manifest(parse_options(asked), 1, source, {}, {})
        assert manifest.min_confidence == expected
    never = new_manifest(parse_options(["--min-confidence", "0"]), 1, source, {}, {})
    assert never.min_confidence == 0


def test_the_card_tells_below_which_probability_answers_abstain(bundle):
    report = (bundle.folder / "report.html").read_text()
    sizes = dict.fromkeys(bundle.manifest.engines, 1_000_000)
    assert "Every image is answered" in report
    abstaining = msgspec.structs.replace(bundle.manifest, min_confidence=0.62)
    again = with_hops(report, abstaining, sizes)
    assert "Answers less probable than 0.620 abstain" in again
    assert "Every image is answered, unless" not in again


def test_adding_int8_calibrates_with_the_images_of_the_run(store, run):
    done = add_engine(
        store, "--engines", "int8", "--run", run, "--calibration-images", 9, "--version", 1,
        "--gate-int8-agreement", 0, "--gate-int8-drop", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = Path(done.stdout.rstrip().rsplit(" ", 1)[1])
    engine = read_manifest(folder).engines["int8"]
    assert engine.made_with["calibration"].endswith("; 9 training images")
    assert engine.measured.images == 24
    assert faults(folder) == faults(store / "shop" / "1") == []


def test_the_run_of_another_version_is_refused(store, run, tmp_path):
    other = copied(run, tmp_path / "run")
    save_record(other, msgspec.structs.replace(read_record(run), weights_sha256="0" * 64))
    options = parse_options(
        ["add-engine", "--models", str(store), "--model", "shop", "--run", str(other)]
    )
    with pytest.raises(InvalidInput, match="was not exported from the run in"):
        add_engine_here(options)


def test_without_a_model_card_nothing_is_begun(store, run, tmp_path):
    other = copied(run, tmp_path / "run")
    (other / "report.html").unlink()
    models = tmp_path / "models"
    with pytest.raises(NotFound, match=r"report\.html is missing.*: copy the whole folder again"):
        export_here(parse_options(["--run", str(other), "--models", str(models)]))
    assert not models.exists()
    (other / "report.html").write_bytes(b"\xff")
    with pytest.raises(DamagedFile, match=r"report\.html is not UTF-8"):
        read_report(other)


def test_version_0_is_not_the_served_one(store):
    options = parse_options(
        ["add-engine", "--models", str(store), "--model", "shop", "--version", "0"]
    )
    with pytest.raises(NotFound, match="no bundle in"):
        add_engine_here(options)


def test_an_engine_that_stays_is_not_told_as_left_out(store):
    there = versions(store / "shop")
    options = parse_options(
        ["add-engine", "--models", str(store), "--model", "shop", "--engines", "int8,trt-fp16",
         "--build-logs", str(store / "logs"), *PLANS, "--gate-fp16-agreement", "0",
         "--version", "1"]
    )  # fmt: skip
    manifest = read_manifest(add_engine_here(options))
    assert manifest.version not in there
    assert "int8" in manifest.engines  # that of version 1: there are no images to make it anew
    assert manifest.left_out == {}


def test_a_plan_of_several_profiles_is_run_by_the_largest_that_begins_at_one(tmp_path, monkeypatch):
    asked = []

    def nothing_opens(path, *, max_batch, **_):
        asked.append(max_batch)
        raise EngineRefused("no_gpu", "none here")

    monkeypatch.setattr("exporters.proof.open_plan", nothing_opens)
    profiles = tuple(
        Profile(min_batch=least, opt_batch=8, max_batch=most) for least, most in ((1, 8), (8, 32))
    )
    maker = small_maker(tmp_path, "portable", profiles=profiles)
    made, left_out, _ = make_all(maker, ["trt-fp16"], required=[])
    assert (list(made), left_out) == (["trt-fp16.portable"], {})
    assert asked == [8]


def copied(run: Path, target: Path) -> Path:
    target.mkdir()
    for path in run.iterdir():
        if path.is_file():
            (target / path.name).hardlink_to(path)
    return target


def test_a_checkpoint_of_another_architecture_is_refused(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    save_record(copy, msgspec.structs.replace(read_record(run), architecture="resnet50"))
    with pytest.raises(DamagedFile, match="does not fit resnet50"):
        load_source(copy, None)


def test_labels_that_do_not_match_the_head_are_refused(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    record = read_record(run)
    save_record(copy, msgspec.structs.replace(record, labels=(*record.labels, "hat")))
    with pytest.raises(DamagedFile, match=r"head\.weight(.|\n)*\[9, 512\]"):
        load_source(copy, None)


def test_a_checkpoint_of_a_newer_format_is_told_as_such(run, tmp_path):
    copy = copied(run, tmp_path / "run")
    record = (run / "checkpoint.json").read_text()
    (copy / "checkpoint.json").unlink()
    newer = record.replace('"format": 1', '"format": 2, "flavour": "new"')
    (copy / "checkpoint.json").write_text(newer)
    with pytest.raises(DamagedFile, match=r"has format 2.*reads format 1: update packshot"):
        load_source(copy, None)


def test_images_that_are_gone_are_named(run, tmp_path):
    with pytest.raises(DamagedFile, match="cannot be read any more"):
        load_source(run, tmp_path / "nowhere")


def test_too_few_images_to_calibrate_with_are_refused(run):
    source = load_source(run, None)
    split = msgspec.structs.replace(source.split, train=source.split.train[:7])
    few = msgspec.structs.replace(source, split=split)
    with pytest.raises(InvalidInput, match="7 training images are too few"):
        calibration_images(few, 64, seed=0)
    assert len(calibration_images(source, 10, seed=0)) == 10


def test_options_out_of_range_are_named():
    for arguments, told in {
        ("--engines", "fp32,fp8"): (
            "--engines names fp8; there are fp32, int8, openvino-int8, openvino-bf16, trt-fp16, "
            "trt-int8"
        ),
        ("--engines", "int8"): "--engines is int8; fp32 must be among them",
        ("--require", "trt-fp16"): "--require names trt-fp16, which --engines does not",
        ("--calibration-images", "7"): "--calibration-images is 7; it must be from 8 to 1000",
        ("--seed", "-1"): "--seed is -1",
        ("--model", "a/b"): "--model is 'a/b'",
        ("--profile", "4,2,8"): "4,2,8",
        ("--targets", "rubbish"): "rubbish",
        ("add-engine", "--engines", "fp32"): "every version has fp32",
    }.items():
        with pytest.raises(InvalidInput) as caught:
            parse_options(arguments)
        assert told in str(caught.value)


def test_options_become_typed_records():
    options = parse_options(
        ["--gate-int8-drop", "0.02", "--profile", "1,4,16", "--profile", "1,1,1",
         "--workspace-mb", "100", "--targets", "8.6,8.9", "--engines", "fp32,trt-int8"]
    )  # fmt: skip
    assert isinstance(options, ExportOptions)
    assert options.gates["int8"].max_accuracy_drop == 0.02
    assert options.gates["fp32"].max_logit_difference == 1e-3
    assert [one.max_batch for one in options.plan.profiles] == [16, 1]
    assert options.plan.workspace_bytes == 100_000_000
    assert options.plan.targets == ("8.6", "8.9")
    assert options.engines == ("fp32", "trt-int8")
    added = parse_options(["add-engine", "--version", "3"])
    assert isinstance(added, AddOptions)
    assert (added.version, added.engines) == (3, ("trt-fp16",))
    with pytest.raises(SystemExit):
        parse_options(["--gate-int8-drop", "2"])


@pytest.mark.parametrize("verb", [(), ("add-engine",)])
def test_help_tells_each_default_once_and_where_there_is_one(verb, capsys):
    with pytest.raises(SystemExit):
        parse_options([*verb, "--help"])
    told = " ".join(capsys.readouterr().out.split())
    for none in ("(default: None)", "(default: )", "(default: False)", ") (default:"):
        assert none not in told
    for one in ("(default: 0.995)", "calibration images (default: 0)", "(default: models)"):
        assert one in told
    assert "(default: 1,8,32)" in told


def test_timings_are_compared_at_their_best():
    def timed(*milliseconds: float) -> tuple[Timing, ...]:
        return tuple(
            Timing(batch=batch, milliseconds=one)
            for batch, one in zip((1, 8, 32), milliseconds, strict=True)
        )

    int8, fp32 = timed(10, 40, 200), timed(40, 240, 960)
    assert [one.images_per_second for one in int8] == [100, 200, 160]
    assert speed_up(int8, fp32) == pytest.approx(6)


def test_engines_are_timed_at_every_batch_size(bundle, store):
    engine = open_onnx(bundle.folder / "model.int8.onnx")
    found = timings({"a": engine, "b": engine}, bundle.golden().pixels)
    engine.close()
    assert list(found) == ["a", "b"]
    for times in found.values():
        assert [one.batch for one in times] == [1, 8, 32]
        assert all(one.milliseconds > 0 for one in times)
