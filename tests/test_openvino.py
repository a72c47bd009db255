"""The engines of OpenVINO: they answer as others do, or are refused before they cost anything."""

import importlib.util
import logging
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from processes import serving, until
from small_network import photos, write_network
from test_gpu_engines import replace_opener
from tiny import add_openvino, change_manifest, colour_network, tiny_bundle

from exporters.calibration import Histograms
from exporters.to_int8 import CPU, prepare, quantize
from packshot import machine
from packshot.bundle import open_bundle
from packshot.client import Client
from packshot.errors import EngineRefused
from serving.engines import open as opening
from serving.engines.compiled import CompiledModels
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.openvino import (
    AMX,
    BF16,
    INSTRUCTIONS,
    INT8,
    OpenVinoEngine,
    check_openvino,
    open_openvino,
)

# Not importorskip: it would import what reports its use.
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("openvino") is None, reason="it is installed on x86-64 Linux only"
)

IMAGES = photos(5)


def kept(folder: Path) -> list[Path]:
    return [*folder.glob("*.compiled")]


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return write_network(tmp_path_factory.mktemp("openvino") / "model.onnx")


@pytest.fixture
def engine(network):
    engine = OpenVinoEngine(network, name=INT8, lanes=2)
    yield engine
    engine.close()


@pytest.mark.parametrize("alone", [False, True])
@pytest.mark.parametrize("images", [IMAGES, list(IMAGES), IMAGES[:1]], ids=["array", "list", "one"])
def test_it_answers_as_onnx_runtime_does(engine, network, images, alone):
    expected = OnnxRuntimeEngine(network, name="fp32", lanes=1).run(np.stack(images))
    answer = engine.run(images, alone=alone)
    assert answer.logits.shape == expected.logits.shape
    np.testing.assert_allclose(answer.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(answer.embedding, expected.embedding, atol=1e-4)


def test_answers_are_the_callers_own(engine):
    first = engine.run(IMAGES[:1])
    kept = first.logits.copy()
    for image in IMAGES[1:]:
        engine.run(image[np.newaxis])
    np.testing.assert_array_equal(first.logits, kept)


def test_more_threads_than_lanes_wait_for_each_other(engine):
    expected = engine.run(IMAGES).logits
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: engine.run(IMAGES).logits, range(24)))
    for answer in answers:
        np.testing.assert_array_equal(answer, expected)


def test_an_image_runs_on_the_thread_that_asks(engine):
    """On a thread of OpenVINO's, as with one model for all lanes, each would wait to be woken."""
    images = np.repeat(IMAGES, 40, axis=0)
    engine.run(images)
    here, all_threads = time.thread_time(), time.process_time()
    engine.run(images)
    assert time.thread_time() - here > 0.5 * (time.process_time() - all_threads)


@pytest.mark.parametrize(("lanes", "splits", "with_amx"), [(1, 0, 0), (2, 1, 0), (4, 1, 1)])
def test_a_lone_image_is_split_where_that_gains_enough(network, lanes, splits, with_amx):
    for flags, expected in (((), splits), ((AMX,), with_amx)):
        engine = OpenVinoEngine(network, name=INT8, lanes=lanes, flags=lambda flags=flags: flags)
        engine.close()
        assert engine.largest_alone == expected


def test_what_is_split_over_all_threads_is_answered_as_in_a_lane(network):
    engine = OpenVinoEngine(network, name=INT8, lanes=2, flags=tuple)
    try:
        expected = engine.run(IMAGES)
        for count in (1, len(IMAGES)):
            answer = engine.run(IMAGES[:count], alone=True)
            np.testing.assert_allclose(answer.logits, expected.logits[:count], atol=1e-4)
    finally:
        engine.close()


def test_what_was_compiled_is_loaded_by_the_next_that_runs_the_same_file(network, tmp_path):
    def answers(flags: tuple[str, ...] = ("avx512_vnni",)) -> np.ndarray:
        engine = open_openvino(
            lambda: network, name=INT8, lanes=1, flags=lambda: flags,
            compiled=CompiledModels(tmp_path, "a file"),
        )  # fmt: skip
        try:
            return engine.run(IMAGES).logits
        finally:
            engine.close()

    first = answers()
    until(lambda: kept(tmp_path))
    (path,) = kept(tmp_path)
    written = path.stat().st_ino
    np.testing.assert_array_equal(answers(), first)
    answers(flags=("avx512_vnni", "fma"))
    until(lambda: len(kept(tmp_path)) == 2)
    assert path.stat().st_ino == written


@pytest.mark.parametrize(
    ("name", "flags", "lacks"),
    [
        (INT8, {"fma", "avx2", "avx_vnni"}, "avx512_vnni"),
        (BF16, {"fma", "avx512_vnni"}, "avx512_bf16"),
    ],
)
def test_another_cpu_is_refused_before_the_file_is_asked_for(name, flags, lacks):
    def file() -> Path:
        raise AssertionError("it was asked for")

    with pytest.raises(EngineRefused, match=f"this CPU has no {lacks}") as refused:
        open_openvino(file, name=name, lanes=1, flags=lambda: flags)
    assert refused.value.reason == "wrong_cpu"
    check_openvino(name, flags=lambda: {*flags, lacks})


def test_what_the_cpu_can_do_is_read_from_the_system(tmp_path, monkeypatch):
    core = "model name\t: A CPU\ncpu MHz\t\t: 2893.202\nflags\t\t: fma avx512_vnni\n\n"
    (tmp_path / "cpuinfo").write_text(core * 2)
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "cpuinfo")
    assert machine.cpu_flags() == {"fma", "avx512_vnni"}
    monkeypatch.setattr(machine, "CPU_INFO", tmp_path / "none")
    assert not machine.cpu_flags()


def test_without_the_package_it_is_refused(monkeypatch, caplog):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with caplog.at_level(logging.ERROR), pytest.raises(EngineRefused) as refused:
        check_openvino(INT8, flags=INSTRUCTIONS.values)
    assert refused.value.reason == "no_runtime"


def test_a_file_that_is_no_network_is_refused_and_the_log_says_why(tmp_path, caplog):
    (tmp_path / "model.onnx").write_bytes(b"no network")
    with caplog.at_level(logging.ERROR), pytest.raises(EngineRefused, match="log has") as refused:
        OpenVinoEngine(tmp_path / "model.onnx", name=INT8, lanes=1)
    assert refused.value.reason == "load_failed"
    assert caplog.records[0].exc_info


def test_what_would_report_its_use_is_never_imported(network):
    """openvino's converter sends an event when it is imported, which `import openvino` does."""
    script = (
        "import sys; from pathlib import Path; from serving.engines.openvino import *;"
        f"OpenVinoEngine(Path({str(network)!r}), name=INT8, lanes=1);"
        "assert 'openvino' in sys.modules;"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(INSTRUCTIONS[INT8] not in machine.cpu_flags(), reason="this CPU has no VNNI")
def test_a_server_keeps_what_it_compiled_and_starts_from_it(tmp_path):
    bundle(tmp_path / "models")
    folder = tmp_path / "compiled"
    options = ("--models", tmp_path / "models", "--engines", INT8, "--compiled-models", folder)
    with serving(*options):
        until(lambda: kept(folder))
        (path,) = kept(folder)
    written = path.stat().st_ino
    with serving(*options) as server, Client(server.target) as client:
        assert client.classify(IMAGES[0])
    assert [one.stat().st_ino for one in kept(folder)] == [written]


# Its place in the order


def bundle(store: Path) -> Path:
    return tiny_bundle(store, int8=colour_network())


@pytest.fixture
def chosen(monkeypatch):
    """Opens a bundle as a server does on a CPU for OpenVINO, or on one with `flags`."""

    def choose(folder: Path, *, flags=INSTRUCTIONS.values(), order=(INT8, "int8")):
        def opener(wanted):
            return open_openvino(
                wanted.checked, name=wanted.name, lanes=wanted.choice.lanes, flags=lambda: flags
            )

        for name in (INT8, BF16):
            replace_opener(monkeypatch, name, opener)
        choice = opening.EngineChoice(order=order, lanes=2, max_batch=2)
        return opening.open_engine(open_bundle(folder), choice)

    return choose


def test_int8s_file_serves_at_int8s_tolerance_where_openvino_was_not_measured(tmp_path, chosen):
    opened = chosen(bundle(tmp_path))
    assert (opened.engine.name, opened.file.file) == (INT8, "model.int8.onnx")
    opened.engine.close()


def test_what_was_measured_of_openvino_is_what_it_is_held_to(tmp_path, chosen):
    assert chosen(add_openvino(bundle(tmp_path), tolerance=7.0)).file.tolerance == 7.0
    opened = chosen(add_openvino(bundle(tmp_path), tolerance=-1.0))
    assert opened.engine.name == "int8"
    assert [refusal.reason for refusal in opened.refusals] == ["answers_differ"]


def test_an_older_bundle_that_openvino_reads_otherwise_is_no_fault_of_the_bundle(tmp_path, chosen):
    """Nobody said that it would: `answers_differ` would raise an alarm."""
    folder = tiny_bundle(tmp_path, int8=colour_network(sign=-1))
    opened = chosen(folder, order=(INT8, "fp32"))
    (refusal,) = opened.refusals
    assert (opened.engine.name, refusal.reason) == ("fp32", "not_in_bundle")
    assert "not measured when the bundle was exported, and " in refusal.message
    assert "export again" in refusal.message


def test_bfloat16_does_not_serve_where_it_was_not_measured(tmp_path, chosen):
    opened = chosen(bundle(tmp_path), order=(BF16, "fp32"))
    assert (opened.engine.name, opened.refusals[0].reason) == ("fp32", "not_in_bundle")


@pytest.mark.skipif(
    INSTRUCTIONS[BF16] not in machine.cpu_flags(), reason="this CPU has no bfloat16"
)
def test_bfloat16_serves_where_it_was_measured(tmp_path, chosen):
    opened = chosen(add_openvino(bundle(tmp_path)), order=(BF16, "fp32"))
    assert (opened.engine.name, opened.file.precision) == (BF16, "bf16")


def test_what_failed_when_it_was_exported_does_not_serve(tmp_path, chosen):
    why = {INT8: "top-1 agreement 72.00%"}
    opened = chosen(change_manifest(bundle(tmp_path), left_out=why))
    assert opened.engine.name == "int8"
    (refusal,) = opened.refusals
    assert (refusal.reason, refusal.message) == (
        "not_in_bundle", "not in the bundle: top-1 agreement 72.00%",
    )  # fmt: skip


def test_onnx_runtime_takes_over_on_another_cpu(tmp_path, chosen):
    opened = chosen(bundle(tmp_path), flags=())
    assert opened.engine.name == "int8"
    assert [refusal.reason for refusal in opened.refusals] == ["wrong_cpu"]


def test_a_run_that_fails_gives_its_memory_to_the_next(engine):
    for _ in range(5):
        with pytest.raises(Exception, match="shape"):
            engine.run(IMAGES[:1, :100])
    assert engine.run(IMAGES).logits.shape == (5, 4)


def test_int8_on_openvino_rounds_as_onnx_runtime_does(tmp_path):
    fp32, prepared, target = (tmp_path / name for name in ("fp32.onnx", "p.onnx", "int8.onnx"))
    prepare(write_network(fp32), prepared)
    images = photos(16)
    quantize(prepared, target, Histograms(prepared, images, tmp_path).calibration("minmax"), CPU)
    truth = OnnxRuntimeEngine(fp32, name="fp32", lanes=1).run(images).logits
    expected = OnnxRuntimeEngine(target, name="int8", lanes=1).run(images).logits
    answers = OpenVinoEngine(target, name=INT8, lanes=1).run(images).logits
    assert np.abs(answers - expected).max() <= np.abs(expected - truth).max()
