"""The engines for a GPU: what they refuse, and what they compute on a double of one."""

import ctypes
import hashlib
import json
import logging
import subprocess
import sys
import threading
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import msgspec
import numpy as np
import pytest
from fake_gpu import SHAPE, TENSORS, Error, FakeCudart, FakeDriver, FakeTensorRT, sidecar
from processes import ROOT
from tiny import PURE, colour_network, jpeg, overwrite, reference, tiny_bundle, write_plan

from exporters.plan_options import PlanOptions
from exporters.to_tensorrt import build_plan
from packshot.bundle import INPUT, LOGITS, open_bundle
from packshot.errors import DamagedFile, EngineRefused
from packshot.image import ImageSpec, load_pixels
from packshot.plan import Profile, Tensor, check_plan, read_sidecar, sidecar_path
from serving.engines import open as opening
from serving.engines.cudart import CudaFailed
from serving.engines.gpu import probe_gpu
from serving.engines.onnxruntime import CUDA, open_cuda
from serving.engines.tensorrt import Runtime, import_runtime, open_plan

PLAN = b"ftrt: a plan"
DESCRIBED = sidecar(sha256=hashlib.sha256(PLAN).hexdigest())
MAX_BATCH = 5
HERE = partial(probe_gpu, FakeDriver())
ORDER = ("tensorrt", "cuda", "int8", "fp32")


def choice(*order: str) -> opening.EngineChoice:
    return opening.EngineChoice(order=order, lanes=1, max_batch=2)


@pytest.fixture
def cudart():
    return FakeCudart()


@pytest.fixture
def trt(cudart):
    return FakeTensorRT(cudart)


@pytest.fixture
def opened(trt, cudart):
    """Opens a plan on the double, with what differs from DESCRIBED."""

    def opened(
        path, *, flavour="tensorrt", max_batch=MAX_BATCH, image_shape=SHAPE, probe=HERE, **options
    ):
        return open_plan(
            path, max_batch=max_batch, image_shape=image_shape, probe=probe,
            load=lambda _: Runtime(flavour, trt, cudart), **options,
        )  # fmt: skip

    return opened


@pytest.fixture
def engine(opened, tmp_path):
    return opened(write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))


def pictures(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE), np.uint8)


def refused(action, *arguments, **options) -> EngineRefused:
    with pytest.raises(EngineRefused) as caught:
        action(*arguments, **options)
    return caught.value


# The probe


def test_the_driver_tells_what_gpu_there_is():
    gpu = probe_gpu(FakeDriver(capability=(12, 0)))
    assert (gpu.name, gpu.compute_capability, gpu.sm) == ("NVIDIA H100", "12.0", "sm_120")
    assert gpu.driver_version == "13.0"


def test_without_driver_or_gpu_the_probe_says_so():
    missing = refused(probe_gpu, lambda name: ctypes.CDLL(f"no-such-{name}"))
    assert (missing.reason, "no-such-libcuda.so.1" in str(missing)) == ("no_driver", True)
    assert refused(probe_gpu, FakeDriver(devices=0)).reason == "no_gpu"
    assert refused(probe_gpu, FakeDriver(init=100)).reason == "no_gpu"
    broken = refused(probe_gpu, FakeDriver(init=803))
    assert (broken.reason, "cuInit gives error 803" in str(broken)) == ("no_driver", True)


def test_nothing_of_nvidias_is_imported_where_there_is_no_driver(tmp_path):
    """As TensorRT does without a driver, these modules end the process: no test can catch it."""
    (tmp_path / "tensorrt.py").write_text("import os; os._exit(139)")
    (tmp_path / "onnxruntime.py").write_text("import os; os._exit(139)")
    (tmp_path / "cuda").mkdir()
    (tmp_path / "cuda" / "__init__.py").write_text("import os; os._exit(139)")
    plan = write_plan(tmp_path / "model.plan", PLAN, DESCRIBED)
    script = f"""
import sys
from pathlib import Path
from packshot.errors import EngineRefused
from serving.engines.gpu import probe_gpu
from serving.engines.onnxruntime import open_cuda
from serving.engines.tensorrt import open_plan

def no_driver():
    raise EngineRefused("no_driver", "none")

plan = Path({str(plan)!r})
for action in (
    lambda: open_plan(plan, max_batch=1, image_shape=(224, 224, 3), probe=no_driver),
    lambda: open_cuda(lambda: plan, no_driver),
):
    try:
        action()
    except EngineRefused as refused:
        print(refused.reason)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True,
        env={"PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["no_driver"] * 2, "")


# What a plan is refused for


def test_a_plan_that_fits_passes_and_later_gpus_are_covered_by_a_plus():
    check = partial(check_plan, plan=PLAN, max_batch=32, image_shape=SHAPE)
    check(DESCRIBED, compute_capability="9.0")
    portable = msgspec.structs.replace(DESCRIBED, compute_capabilities=("8.9", "12.0+"))
    for capability in ("8.9", "12.0", "12.1", "13.0"):
        check(portable, compute_capability=capability)
    for capability in ("8.6", "9.0", "10.0"):
        assert refused(check, portable, compute_capability=capability).reason == "wrong_gpu"


@pytest.mark.parametrize(
    ("changes", "reason", "message"),
    [
        ({"sha256": "0" * 64}, "damaged", "the plan has sha256"),
        ({"compute_capabilities": ("8.9",)}, "wrong_gpu", "built for compute capability 8.9"),
        (
            {"profiles": (Profile(min_batch=1, opt_batch=1, max_batch=4),)},
            "wrong_shape", "batches of 1 to 4; 1 to 5 are needed",
        ),
        (
            {"profiles": (Profile(min_batch=2, opt_batch=8, max_batch=32),)},
            "wrong_shape", "batches of 2 to 32",
        ),
        (
            {"inputs": (Tensor(name=INPUT, dtype="float32", shape=TENSORS[INPUT]),)},
            "wrong_shape", "images float32",
        ),
        ({"outputs": DESCRIBED.outputs[:1]}, "wrong_shape", "its outputs are logits"),
        ({"version": "10.13.0.35"}, "wrong_version", "tensorrt 10.16.1.11 cannot load"),
        ({"flavour": "tensorrt_rtx"}, "wrong_flavour", "built for tensorrt_rtx"),
    ],
)  # fmt: skip
def test_every_misfit_has_its_reason(opened, trt, tmp_path, changes, reason, message):
    described = msgspec.structs.replace(DESCRIBED, **changes)
    error = refused(opened, write_plan(tmp_path / "model.plan", PLAN, described))
    assert error.reason == reason
    assert message in str(error)
    assert trt.contexts == []


def test_a_version_compatible_plan_loads_in_its_version_and_later_ones(opened, trt, tmp_path):
    def plan_of(version: str) -> Path:
        described = msgspec.structs.replace(DESCRIBED, version=version, version_compatible=True)
        return write_plan(tmp_path / "model.plan", PLAN, described)

    for version in ("10.9.0.34", "10.16.1.11"):
        trt.engine_host_code_allowed = False
        opened(plan_of(version)).close()
        assert trt.engine_host_code_allowed  # it brings the runtime that it was built with
    for version in ("10.16.1.12", "11.0.0.1"):
        error = refused(opened, plan_of(version))
        assert error.reason == "wrong_version"
        assert f"install {version} or later" in str(error)


def test_a_plan_of_one_version_runs_no_code_of_its_own(engine, trt):
    assert not trt.engine_host_code_allowed


def test_a_sidecar_that_is_none_is_damage(opened, tmp_path):
    path = write_plan(tmp_path / "model.plan", PLAN, DESCRIBED)
    text = sidecar_path(path).read_text()
    for wrong in ("{", text.replace("9.0", "hopper"), text.replace('"version"', '"release"')):
        sidecar_path(path).write_text(wrong)
        with pytest.raises(DamagedFile, match=r"model\.plan\.json"):
            read_sidecar(sidecar_path(path))
        assert refused(opened, path).reason == "damaged"
    sidecar_path(path).unlink()
    assert refused(opened, path).reason == "damaged"


@pytest.mark.parametrize(
    ("flavour", "extra"),
    [("tensorrt", ".[tensorrt]"), ("tensorrt_rtx", ".[tensorrt-rtx]")],
)
def test_a_runtime_that_is_not_installed_is_named(monkeypatch, flavour, extra):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # to the interpreter: not installed
    error = refused(import_runtime, flavour)
    assert error.reason == "no_runtime"
    assert extra in str(error)


def test_the_other_flavour_is_found_so_that_the_refusal_can_name_it(tmp_path, monkeypatch):
    for name in ("tensorrt", "tensorrt_rtx", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "tensorrt_rtx.py").write_text("__version__ = '1.7'")
    (tmp_path / "cuda" / "bindings").mkdir(parents=True)
    for module in ("__init__.py", "bindings/__init__.py", "bindings/runtime.py"):
        (tmp_path / "cuda" / module).touch()
    monkeypatch.syspath_prepend(tmp_path)
    assert import_runtime("tensorrt_rtx").flavour == "tensorrt_rtx"
    if find_spec("tensorrt") is None:
        assert import_runtime("tensorrt").flavour == "tensorrt_rtx"
    for name in ("tensorrt_rtx", "cuda", "cuda.bindings", "cuda.bindings.runtime"):
        del sys.modules[name]  # before monkeypatch puts back what was there


def test_a_tensorrt_that_cannot_start_is_refused(opened, trt, tmp_path):
    def null(_logger: object) -> None:  # as its bindings do
        raise TypeError("factory function returned nullptr")

    trt.Runtime = null
    error = refused(opened, write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))
    assert error.reason == "load_failed"


def test_a_plan_that_tensorrt_does_not_take_is_refused(opened, trt, cudart, tmp_path):
    path = write_plan(tmp_path / "model.plan", PLAN, DESCRIBED)
    trt._loads = False
    assert refused(opened, path).reason == "load_failed"
    assert cudart.log == []


def test_a_plan_that_is_not_as_described_is_refused(opened, trt, cudart, tmp_path):
    trt.tensors[LOGITS] = (-1, 1000)  # would be written behind the end of the memory for 3
    error = refused(opened, write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))
    assert error.reason == "wrong_shape"
    assert cudart.log == []


# What the engine computes


def test_batches_of_every_size_are_answered_right(engine):
    for seed, count in enumerate([1, 3, 4, 4, 5, 1, 2, 13]):  # 13: three runs
        images = pictures(count, seed)
        for sent in (images, list(images)):
            answer = engine.run(sent)
            assert np.allclose(answer.logits, reference(images), atol=1e-4)
            assert np.allclose(answer.embedding, images.mean(axis=(1, 2)), atol=1e-2)


def test_an_answer_is_not_written_to_by_later_runs(engine):
    answers = [engine.run(pictures(2, seed)) for seed in range(5)]
    for seed, answer in enumerate(answers):
        assert np.allclose(answer.logits, reference(pictures(2, seed)), atol=1e-4)


def test_sizes_with_a_graph_are_launched_and_shapes_set_only_on_change(engine, trt, cudart):
    for context in trt.contexts:
        context.shapes_set.clear()
        context.enqueued.clear()
    launches = cudart.log.count("launch")
    for count in (1, 2, 4, 1, 4):
        engine.run(pictures(count))
    assert cudart.log.count("launch") == launches + 5
    assert [context.enqueued for context in trt.contexts] == [[], []]
    for count in (3, 3, 3, 3, 5, 5):  # the two workers take turns
        engine.run(pictures(count))
    assert [context.enqueued for context in trt.contexts] == [[3, 3, 5], [3, 3, 5]]
    assert [context.shapes_set for context in trt.contexts] == [[3, 5], [3, 5]]


def test_two_threads_at_once_get_their_own_answers(engine, trt):
    trt.meet = threading.Barrier(2)  # a run ends only when the other one is there as well
    answers: dict[int, np.ndarray] = {}

    def ask(seed: int) -> None:
        for _ in range(5):
            answers[seed] = engine.run(pictures(3, seed)).logits

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(engine.lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    for seed in range(engine.lanes):
        assert np.allclose(answers[seed], reference(pictures(3, seed)), atol=1e-4)


def test_nothing_is_left_after_close_and_graphs_go_before_their_memory(engine, cudart):
    made = cudart.log.count("make device")
    assert made == len(TENSORS) * engine.lanes
    cudart.log.clear()
    engine.close()
    assert cudart.alive == {}
    freed = [entry for entry in cudart.log if entry.startswith("free")]
    worker = freed[: len(freed) // engine.lanes]
    assert worker[0] == "free executable"
    assert worker[-1] == "free stream"
    assert worker.index("free device") > max(
        i for i, entry in enumerate(worker) if entry == "free executable"
    )


def test_a_cuda_error_is_told_and_frees_what_was_taken(opened, cudart, tmp_path):
    cudart.fail["cudaMalloc"] = Error.cudaErrorMemoryAllocation
    error = refused(opened, write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))
    assert error.reason == "load_failed"
    assert str(error) == "cudaMalloc: out of memory (cudaErrorMemoryAllocation)"
    assert cudart.alive == {}


def test_a_run_that_fails_gives_its_worker_back(engine, cudart):
    cudart.fail["cudaMemcpyAsync"] = Error.cudaErrorMemoryAllocation
    for _ in range(engine.lanes + 1):
        with pytest.raises(CudaFailed, match="cudaMemcpyAsync: out of memory"):
            engine.run(pictures(3))
    cudart.fail.clear()
    assert np.allclose(engine.run(pictures(3)).logits, reference(pictures(3)), atol=1e-4)


def test_closing_goes_on_where_a_call_fails(engine, cudart, caplog):
    cudart.fail["cudaGraphExecDestroy"] = Error.cudaErrorMemoryAllocation
    engine.close()
    assert {kind for kind, _ in cudart.alive} == {"executable"}
    assert "while closing: cudaGraphExecDestroy" in caplog.text


@pytest.mark.parametrize("call", ["cudaStreamBeginCapture", "cudaGraphInstantiate"])
def test_where_nothing_can_be_captured_it_runs_without_graphs(
    opened, cudart, tmp_path, caplog, call
):
    cudart.fail[call] = Error.cudaErrorStreamCaptureUnsupported
    with caplog.at_level(logging.WARNING):
        engine = opened(write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))
    assert caplog.text.count("without CUDA graphs") == 1
    assert np.allclose(engine.run(pictures(4)).logits, reference(pictures(4)), atol=1e-4)
    assert "launch" not in cudart.log
    engine.close()
    assert cudart.alive == {}


def test_a_graph_that_answers_otherwise_is_not_used(opened, cudart, tmp_path, caplog):
    cudart.cudaGraphLaunch = lambda *_: (Error.cudaSuccess,)  # leaves an older answer in place
    engine = opened(write_plan(tmp_path / "model.plan", PLAN, DESCRIBED))
    assert "answers differently" in caplog.text
    for seed in range(4):
        images = pictures(4, seed)
        assert np.allclose(engine.run(images).logits, reference(images), atol=1e-4)


# The order of engines


def replace_opener(monkeypatch, name: str, opener) -> None:
    monkeypatch.setitem(opening.ENGINES, name, opening.ENGINES[name]._replace(open=opener))


@pytest.mark.parametrize(
    ("plans", "reason"),
    [
        ({"trt-fp16.sm90": (PLAN, DESCRIBED), "trt-fp16.sm80": (PLAN, DESCRIBED)}, "no_gpu"),
        ({}, "not_in_bundle"),
    ],
)
def test_without_a_gpu_the_order_ends_at_fp32_and_says_why(
    tmp_path, opened, caplog, monkeypatch, plans, reason
):
    folder = tiny_bundle(tmp_path / "models", plans=plans)
    no_gpu = partial(probe_gpu, FakeDriver(devices=0))
    replace_opener(monkeypatch, "cuda", lambda wanted: open_cuda(wanted.checked, no_gpu))
    replace_opener(monkeypatch, "tensorrt", lambda wanted: opened(wanted.path, probe=no_gpu))
    with caplog.at_level(logging.WARNING):
        chosen = opening.open_engine(open_bundle(folder), choice(*ORDER))
    assert (chosen.engine.name, chosen.file.file) == ("fp32", "model.onnx")
    reasons = {refusal.engine: refusal.reason for refusal in chosen.refusals}
    assert reasons == {"tensorrt": reason, "cuda": "no_gpu", "int8": "not_in_bundle"}
    assert f"engine tensorrt refused ({reason})" in caplog.text
    assert caplog.text.count("sees no GPU") == (2 if plans else 1)  # once for all plans
    assert "engine cuda refused (no_gpu)" in caplog.text


def test_a_plan_of_the_bundle_serves_where_it_fits(tmp_path, opened, cudart, monkeypatch):
    folder = tiny_bundle(tmp_path / "models", plans={"trt-fp16.sm90": (PLAN, DESCRIBED)})
    replace_opener(
        monkeypatch,
        "tensorrt",
        lambda wanted: opened(wanted.path, max_batch=wanted.choice.max_batch),
    )
    chosen = opening.open_engine(open_bundle(folder), choice(*ORDER))
    assert (chosen.engine.name, chosen.refusals) == ("tensorrt", ())
    assert chosen.file.file == "model.trt-fp16.sm90.plan"
    assert chosen.profile.lanes.keys() == {1, 2}
    chosen.engine.close()
    assert cudart.alive == {}


def test_a_plan_that_was_replaced_since_the_manifest_was_read_is_damaged(
    tmp_path, opened, monkeypatch, trt
):
    folder = tiny_bundle(tmp_path / "models", plans={"trt-fp16.sm90": (PLAN, DESCRIBED)})
    bundle = open_bundle(folder, engines=False)
    path = folder / "model.trt-fp16.sm90.plan"
    path.unlink()
    sidecar_path(path).unlink()
    other = b"ftrt: another plan"
    write_plan(path, other, sidecar(sha256=hashlib.sha256(other).hexdigest()))
    monkeypatch.setattr(opening, "open_plan", opened)
    chosen = opening.open_engine(bundle, choice("tensorrt", "fp32"))
    (refusal,) = chosen.refusals
    assert (chosen.engine.name, refusal.reason) == ("fp32", "damaged")
    assert "model.trt-fp16.sm90.plan.json has sha256" in refusal.message
    assert trt.contexts == []


def test_of_several_plans_the_first_that_fits_serves(tmp_path, opened, monkeypatch, caplog):
    elsewhere = msgspec.structs.replace(DESCRIBED, compute_capabilities=("8.6",))
    folder = tiny_bundle(
        tmp_path / "models",
        plans={
            "trt-fp16.sm86": (PLAN, elsewhere),
            "trt-int8.sm90": (PLAN, DESCRIBED),
            "trt-fp16.sm90": (PLAN, DESCRIBED),
        },
    )
    replace_opener(monkeypatch, "tensorrt", lambda wanted: opened(wanted.path, max_batch=2))
    with caplog.at_level(logging.INFO):
        chosen = opening.open_engine(open_bundle(folder), choice(*ORDER))
    assert (chosen.engine.name, chosen.refusals) == ("tensorrt", ())
    assert chosen.file.file == "model.trt-int8.sm90.plan"
    assert "model.trt-fp16.sm86.plan is passed over for model.trt-int8.sm90.plan" in caplog.text
    chosen.engine.close()


def test_where_no_plan_fits_the_refusal_tells_of_each(tmp_path, opened, monkeypatch):
    elsewhere = msgspec.structs.replace(DESCRIBED, compute_capabilities=("8.6",))
    older = msgspec.structs.replace(DESCRIBED, version="10.13.0.35")
    folder = tiny_bundle(
        tmp_path / "models",
        plans={"trt-fp16.sm90": (PLAN, older), "trt-fp16.sm86": (PLAN, elsewhere)},
    )
    replace_opener(monkeypatch, "tensorrt", lambda wanted: opened(wanted.path, max_batch=2))
    chosen = opening.open_engine(open_bundle(folder), choice("tensorrt", "fp32"))
    (refusal,) = chosen.refusals
    assert (chosen.engine.name, refusal.reason) == ("fp32", "wrong_version")
    assert "model.trt-fp16.sm90.plan: built by tensorrt 10.13.0.35" in refusal.message
    assert "model.trt-fp16.sm86.plan: built for compute capability 8.6" in refusal.message


def test_a_plan_that_failed_its_gate_is_told(tmp_path):
    folder = tiny_bundle(tmp_path / "models")
    manifest = folder / "manifest.json"
    record = json.loads(manifest.read_text())
    record["left_out"] = {"int8": "too far off", "trt-fp16.sm90": "the GPU was too busy"}
    overwrite(manifest, json.dumps(record).encode())
    chosen = opening.open_engine(open_bundle(folder), choice("tensorrt", "fp32"))
    (refusal,) = chosen.refusals
    assert refusal.message == "not in the bundle: trt-fp16.sm90: the GPU was too busy"


def test_a_plan_without_a_hash_of_its_sidecar_is_no_bundle(tmp_path):
    folder = tiny_bundle(tmp_path / "models", plans={"trt-fp16.sm90": (PLAN, DESCRIBED)})
    manifest = folder / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["files"]["model.trt-fp16.sm90.plan.json"]
    overwrite(manifest, json.dumps(record).encode())
    with pytest.raises(DamagedFile, match=r"no hash of model\.trt-fp16\.sm90\.plan\.json"):
        open_bundle(folder)


def test_an_onnxruntime_for_the_cpu_is_refused_as_cuda(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    if CUDA in ort.get_available_providers():
        pytest.skip("this onnxruntime is the one for GPUs")
    path = tmp_path / "model.onnx"
    path.write_bytes(colour_network())
    error = refused(open_cuda, lambda: path, HERE)
    assert error.reason == "no_runtime"
    assert "onnxruntime-gpu" in str(error)


# On a GPU


@pytest.mark.gpu
def test_cuda_answers_as_numpy_does(tmp_path):
    ort = pytest.importorskip("onnxruntime")
    if CUDA not in ort.get_available_providers():
        pytest.skip("this onnxruntime is built without CUDA: install onnxruntime-gpu")
    path = tmp_path / "model.onnx"
    path.write_bytes(colour_network())
    engine = open_cuda(lambda: path)
    for count in (1, 3, 8):
        images = pictures(count)
        assert np.allclose(engine.run(images).logits, reference(images), atol=1e-3)
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize("flavour", ["tensorrt", "tensorrt_rtx"])
def test_tensorrt_answers_as_numpy_does(tmp_path, flavour):
    """Builds the plan here, from the tiny network: needs TensorRT whole, not its runtime alone."""
    pytest.importorskip(flavour)
    pytest.importorskip("cuda.bindings.runtime")
    source, path = tmp_path / "model.onnx", tmp_path / "model.plan"
    source.write_bytes(colour_network())
    build_plan(source, path, PlanOptions(flavour=flavour), tmp_path / "log")
    engine = open_plan(path, max_batch=8, image_shape=SHAPE)
    pixels = np.stack([load_pixels(jpeg(colour), ImageSpec()) for colour in PURE.values()])
    for images in (pixels, pictures(1), pictures(5), pictures(8), pictures(4), pictures(20)):
        assert np.allclose(engine.run(images).logits, reference(images), atol=1e-2)
    engine.close()
