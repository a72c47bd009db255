"""Plans: built for real by TensorRT-RTX, which needs no GPU; TensorRT's own way on a double."""

import hashlib
import os
import resource
import signal
import sys
import threading
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import fake_builder
import msgspec
import numpy as np
import onnx
import pytest
from fake_builder import NEW_TIMINGS, FakeTensorRT
from fake_gpu import SHAPE, FakeDriver
from tiny import colour_network

from exporters.plan_options import PORTABLE_CAPABILITIES, PlanOptions, plan_key
from exporters.to_tensorrt import build_plan
from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused, InvalidInput
from packshot.plan import (
    PlanSidecar,
    Profile,
    Tensor,
    check_plan,
    check_runtime,
    read_sidecar,
    sidecar_path,
)
from serving.engines.gpu import probe_gpu
from serving.engines.tensorrt import Runtime, open_plan

H100 = partial(probe_gpu, FakeDriver())
RTX_4090 = partial(probe_gpu, FakeDriver(capability=(8, 9)))
T4 = partial(probe_gpu, FakeDriver(capability=(7, 5)))
NO_GPU = partial(probe_gpu, FakeDriver(devices=0))

RTX = PlanOptions(flavour="tensorrt_rtx", targets=("portable",))


@pytest.fixture(scope="session")
def rtx():
    return pytest.importorskip("tensorrt_rtx")


@pytest.fixture
def tensorrt(monkeypatch):
    """The double, installed."""

    def install(**changes) -> FakeTensorRT:
        module = FakeTensorRT(**changes)
        monkeypatch.setitem(sys.modules, "tensorrt", module)
        return module

    return install


@pytest.fixture
def network(tmp_path) -> Path:
    """The tiny network of fp32: built within 0.1 s."""
    path = tmp_path / "model.onnx"
    path.write_bytes(colour_network())
    return path


@pytest.fixture
def build(network, tmp_path):
    """Builds `network`, unless told otherwise, in the folder that `left` lists."""
    (tmp_path / "unfinished").mkdir()

    def build(options: PlanOptions, *, source: Path = network, probe=NO_GPU) -> PlanSidecar:
        folder = tmp_path / "unfinished"
        return build_plan(source, folder / "model.plan", options, tmp_path / "log", probe=probe)

    return build


@pytest.fixture
def left(tmp_path):
    return lambda: sorted(path.name for path in (tmp_path / "unfinished").iterdir())


def options(**changes) -> PlanOptions:
    return msgspec.structs.replace(RTX, **changes)


def refused(action, *arguments, **named) -> EngineRefused:
    with pytest.raises(EngineRefused) as caught:
        action(*arguments, **named)
    return caught.value


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


# A ResNet-50, for real


@pytest.fixture(scope="module")
def plan(rtx, resnet50_fp16, tmp_path_factory) -> Path:
    """Of ResNet-50 in fp16, portable, batches of 1 to 32."""
    path = tmp_path_factory.mktemp("plan") / "model.trt-fp16.portable.plan"
    build_plan(resnet50_fp16, path, RTX, path.with_suffix(".log"))
    return path


def test_the_sidecar_says_what_was_built(rtx, plan, resnet50_fp16):
    sidecar = read_sidecar(sidecar_path(plan))
    assert sidecar == PlanSidecar(
        sha256=sha256(plan),
        flavour="tensorrt_rtx",
        version=rtx.__version__,
        compute_capabilities=PORTABLE_CAPABILITIES,
        profiles=(Profile(min_batch=1, opt_batch=8, max_batch=32),),
        inputs=(Tensor(name=INPUT, dtype="uint8", shape=(-1, 224, 224, 3)),),
        outputs=(
            Tensor(name=LOGITS, dtype="float32", shape=(-1, 5)),
            Tensor(name=EMBEDDING, dtype="float32", shape=(-1, 2048)),
        ),
        source_sha256=sha256(resnet50_fp16),
    )
    content = plan.read_bytes()
    assert content[:4] == b"vtrt"
    halves = sum(weight.ByteSize() for weight in onnx.load(resnet50_fp16).graph.initializer)
    assert halves < len(content) < 1.1 * halves  # in fp16, not in fp32


def test_the_same_settings_give_the_same_plan_but_for_the_order_of_its_outputs(
    plan, resnet50_fp16, tmp_path
):
    """TensorRT-RTX lists the two outputs now in this order, now in that; nothing else moves."""
    again = tmp_path / "again.plan"
    first, second = (
        read_sidecar(sidecar_path(plan)),
        build_plan(resnet50_fp16, again, RTX, tmp_path / "log"),
    )
    assert msgspec.structs.replace(second, sha256=first.sha256) == first
    one, two = (np.frombuffer(path.read_bytes(), np.uint8) for path in (plan, again))
    assert len(one) == len(two)
    assert np.count_nonzero(one != two) < 1000  # of 48 million


def test_a_small_network_gives_the_same_bytes_every_time(rtx, build):
    assert len({build(RTX).sha256 for _ in range(5)}) == 1


def test_the_build_log_is_verbose(plan):
    log = plan.with_suffix(".log").read_text()
    assert log.count("VERBOSE ") > 1000
    assert "INFO " in log


def test_the_plan_passes_all_that_a_server_checks_on_gpus_of_its_targets(plan, rtx):
    sidecar, content = read_sidecar(sidecar_path(plan)), plan.read_bytes()
    check = partial(check_plan, sidecar, content, max_batch=32, image_shape=SHAPE)
    for capability in ("8.0", "8.6", "8.9", "12.0", "12.1"):
        check(compute_capability=capability)
    check_runtime(sidecar, flavour="tensorrt_rtx", version=rtx.__version__)


def test_tensorrt_itself_does_not_take_the_plan_without_a_gpu(plan, rtx):
    """What the server relies on the probe for: no exception, only a null pointer."""
    runtime = rtx.Runtime(rtx.Logger(rtx.Logger.INTERNAL_ERROR))
    try:
        probe_gpu()
    except EngineRefused:
        assert runtime.deserialize_cuda_engine(plan.read_bytes()) is None
    else:
        pytest.skip("there is a GPU here")


def server_refuses(plan: Path, *, probe=RTX_4090, max_batch=32, runtime=None) -> EngineRefused:
    """`runtime`: flavour and version that are installed; else TensorRT must not be touched."""

    def load(_flavour) -> Runtime:
        assert runtime is not None
        return Runtime(runtime[0], SimpleNamespace(__version__=runtime[1]), None)

    return refused(open_plan, plan, max_batch=max_batch, image_shape=SHAPE, probe=probe, load=load)


def test_a_server_refuses_the_plan_where_it_does_not_fit(plan, rtx):
    hopper = server_refuses(plan, probe=H100)
    assert hopper.reason == "wrong_gpu"
    assert "built for compute capability 8.0, 8.6, 8.9, 12.0+; this GPU has 9.0" in str(hopper)
    assert server_refuses(plan, probe=T4).reason == "wrong_gpu"
    large = server_refuses(plan, max_batch=33)
    assert (large.reason, "1 to 32; 1 to 33 are needed" in str(large)) == ("wrong_shape", True)
    other = server_refuses(plan, runtime=("tensorrt", "10.16.1.11"))
    assert (other.reason, "built for tensorrt_rtx" in str(other)) == ("wrong_flavour", True)
    for version in ("1.6.1.120", "1.99.0.1"):
        newer = server_refuses(plan, runtime=("tensorrt_rtx", version))
        assert newer.reason == "wrong_version"
        assert f"install {rtx.__version__}, or export again" in str(newer)


def test_a_server_refuses_a_plan_that_changed_or_travelled_alone(plan, tmp_path):
    copy = tmp_path / "model.plan"
    copy.write_bytes(plan.read_bytes())
    alone = server_refuses(copy)
    assert (alone.reason, "model.plan.json cannot be read" in str(alone)) == ("damaged", True)
    sidecar_path(copy).write_bytes(sidecar_path(plan).read_bytes())
    with copy.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"one flipped page")
    assert server_refuses(copy).reason == "damaged"


# Settings, on the tiny network


def test_several_profiles(rtx, build):
    profiles = (
        Profile(min_batch=1, opt_batch=1, max_batch=1),
        Profile(min_batch=1, opt_batch=8, max_batch=32),
    )
    both = build(options(profiles=profiles))
    assert both.profiles == profiles
    alone = {build(options(profiles=(one,))).sha256 for one in profiles}
    assert len({both.sha256} | alone) == 3


def test_targets_of_tensorrt_rtx(rtx, build):
    portable = build(RTX)
    ampere = build(options(targets=("8.6", "8.9")))
    here = build(options(targets=("this",)), probe=RTX_4090)
    assert ampere.compute_capabilities == ("8.6", "8.9")
    assert here.compute_capabilities == ("8.9",)
    assert len({one.sha256 for one in (portable, ampere, here)}) == 3
    assert build(options(targets=("8.9",))).sha256 == here.sha256


def test_a_gpu_that_tensorrt_rtx_does_not_know_is_refused_with_those_that_it_does(rtx, build, left):
    for targets, probe in ((("9.0",), NO_GPU), (("8.6", "9.0"), NO_GPU), (("this",), H100)):
        with pytest.raises(InvalidInput, match=r"not build for compute capability 9\.0") as caught:
            build(options(targets=targets), probe=probe)
        assert "it does for 7.5, 8.0, 8.6, 8.9, 12.0, 12.1, and for portable" in str(caught.value)
    assert left() == []


def test_the_gpu_here_as_a_target_needs_one(rtx, build, left):
    assert refused(build, options(targets=("this",))).reason == "no_gpu"
    assert left() == []


def test_int8_is_built_from_symmetric_qdq(rtx, build, quantised):
    int8 = build(RTX, source=quantised(symmetric=True))
    assert int8.source_sha256 == sha256(quantised(symmetric=True))


def test_int8_for_cpus_is_refused_with_the_parsers_words(rtx, build, left, quantised):
    with pytest.raises(InvalidInput, match="Non-zero zero point is not supported"):
        build(RTX, source=quantised(symmetric=False))
    assert left() == []


@pytest.fixture
def quantised(tmp_path):
    """The tiny network with its pixels through int8, zero point 0 or not."""

    def quantised(symmetric: bool) -> Path:
        model = onnx.load_model_from_string(colour_network())
        graph = model.graph
        weights = {"step": np.float32(2), "zero": np.int8(0 if symmetric else 5)}
        graph.initializer.extend(
            onnx.numpy_helper.from_array(np.array(v), k) for k, v in weights.items()
        )
        make = onnx.helper.make_node
        graph.node[1].input[0] = "restored"
        graph.node.insert(1, make("QuantizeLinear", ["floats", "step", "zero"], ["levels"]))
        graph.node.insert(2, make("DequantizeLinear", ["levels", "step", "zero"], ["restored"]))
        path = tmp_path / f"model.int8.{symmetric}.onnx"
        path.write_bytes(model.SerializeToString())
        return path

    return quantised


# What cannot be built


def test_what_is_no_onnx_is_refused(rtx, build, left, tmp_path):
    (tmp_path / "text.onnx").write_bytes(b"no network")
    with pytest.raises(InvalidInput, match=r"cannot parse text\.onnx: .*Failed to parse"):
        build(RTX, source=tmp_path / "text.onnx")
    assert left() == []


def test_an_operator_that_tensorrt_does_not_have_is_named(rtx, build, left, tmp_path):
    model = onnx.load_model_from_string(colour_network())
    model.opset_import.append(onnx.helper.make_opsetid("com.example", 1))
    for node, name in zip(model.graph.node[1:], ("first", "second"), strict=True):
        node.domain, node.op_type, node.name = "com.example", f"Unheard{name}", name
    (tmp_path / "foreign.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(InvalidInput) as caught:
        build(RTX, source=tmp_path / "foreign.onnx")
    assert "cannot parse foreign.onnx: Unheardfirst first: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert left() == []


def test_a_network_with_other_outputs_is_refused_before_it_is_built(rtx, build, left, tmp_path):
    (tmp_path / "other.onnx").write_bytes(colour_network(embedding="features"))
    with pytest.raises(InvalidInput, match=r"other\.onnx .* its outputs are .*features float32"):
        build(RTX, source=tmp_path / "other.onnx")
    assert left() == []


def test_a_build_that_fails_shows_tensorrts_own_words(rtx, build, left, tmp_path):
    """Turing multiplies no matrices in fp32, of which the tiny network is."""
    error = refused(build, options(targets=("7.5",)))
    assert error.reason == "failed"
    assert "TensorRT cannot build a plan from model.onnx; " in str(error)
    assert "FP32 GEMM is not supported" in str(error)
    assert str(error).endswith(f"all of it is in {tmp_path / 'log'}")
    assert left() == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profiles": ()}, "at least one profile"),
        ({"profiles": (Profile(min_batch=0, opt_batch=1, max_batch=2),)}, "is 0,1,2 images"),
        ({"profiles": (Profile(min_batch=4, opt_batch=2, max_batch=8),)}, "is 4,2,8 images"),
        ({"profiles": (Profile(min_batch=2, opt_batch=4, max_batch=8),)}, "begins at 1 image"),
        ({"targets": ()}, "the targets are none"),
        ({"targets": ("hopper",)}, "the targets are hopper; they must be this, ampere-plus"),
        ({"targets": ("portable", "8.6")}, "the targets are portable, 8.6"),
        ({"targets": ("8.6", "8.6")}, "name one twice"),
        ({"workspace_bytes": 0}, "the workspace is 0 bytes"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes, message):
    with pytest.raises(InvalidInput, match=message):
        PlanOptions(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version_compatible": True}, "no version-compatible plans"),
        ({"timing_cache": Path("timings")}, "no timing cache"),
        ({"targets": ("ampere-plus",)}, "no target ampere-plus: use portable"),
    ],
)
def test_what_tensorrt_rtx_cannot_do_is_refused(rtx, build, left, changes, message):
    with pytest.raises(InvalidInput, match=message):
        build(options(**changes))
    assert left() == []


def test_without_tensorrt_the_extra_is_named(monkeypatch, build, left):
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)  # to the interpreter: not installed
    extras = {None: "tensorrt", "tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
    for flavour, extra in extras.items():
        error = refused(build, options(flavour=flavour))
        assert error.reason == "no_runtime"
        assert f"run `pip install '.[{extra}]'` in packshot's checkout" in str(error)
    assert left() == []


def test_a_tensorrt_that_cannot_be_loaded_is_told(monkeypatch, build, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise OSError('libnvinfer.so.10: no such file')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    error = refused(build, PlanOptions(flavour="tensorrt"), probe=H100)
    assert error.reason == "no_runtime"
    assert ".[tensorrt]" in str(error)
    assert "libnvinfer.so.10: no such file" in str(error)


def test_on_a_full_disk_neither_plan_nor_sidecar_is_left(rtx, build, left):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))  # more than log and sidecar take
    try:
        with pytest.raises(OSError, match="File too large"):
            build(RTX)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert left() == []


def test_a_log_that_cannot_be_written_ends_the_build(rtx, network, tmp_path):
    plan = tmp_path / "model.plan"
    with pytest.raises(OSError, match="No space left"):
        build_plan(network, plan, RTX, Path("/dev/full"))
    assert not plan.exists()


def test_an_interrupted_build_ends_without_a_plan(rtx, resnet50_fp16, tmp_path):
    """An exception inside TensorRT's callbacks would end the process."""
    plan, log = tmp_path / "model.plan", tmp_path / "log"

    def interrupt_once_it_builds() -> None:
        while not log.exists() or log.stat().st_size == 0:
            pass
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt_once_it_builds)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        build_plan(resnet50_fp16, plan, RTX, log)
    thread.join()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log"]


# TensorRT itself, on a double


def test_the_doubles_names_are_tensorrts_own(rtx):
    for name in (
        "ILogger", "IProgressMonitor", "ITimingCache", "ITensor", "INetworkDefinition",
        "OnnxParser", "IOptimizationProfile", "IBuilderConfig", "Builder",
    ):  # fmt: skip
        double, real = getattr(fake_builder, name), getattr(rtx, name)
        public = {one for one in vars(double) if not one.startswith("_")}
        assert public - fake_builder.RECORDED <= set(dir(real)), name
    for name in ("BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel"):
        for member in vars(getattr(FakeTensorRT, name)):
            assert hasattr(getattr(rtx, name), member), member
    for method in ("phase_start", "step_complete", "phase_finish"):
        assert hasattr(rtx.IProgressMonitor, method)


def test_a_plan_of_tensorrt_is_for_the_gpu_that_built_it(tensorrt, build):
    tensorrt()
    sidecar = build(PlanOptions(), probe=H100)
    assert (sidecar.flavour, sidecar.version) == ("tensorrt", "10.16.1.11")
    assert sidecar.compute_capabilities == ("9.0",)
    assert not sidecar.version_compatible
    config = FakeTensorRT.last
    assert (config._flags, config._pools, config.hardware_compatibility_level) == (
        set(),
        {},
        "NONE",
    )
    (profile,) = config._profiles
    assert profile._shapes == {INPUT: tuple((batch, *SHAPE) for batch in (1, 8, 32))}
    assert build(PlanOptions(targets=("9.0",)), probe=H100) == sidecar


def test_limits_and_flags_reach_tensorrt(tensorrt, build):
    tensorrt()
    sidecar = build(
        PlanOptions(workspace_bytes=1 << 30, version_compatible=True, targets=("ampere-plus",)),
        probe=H100,
    )
    config = FakeTensorRT.last
    assert config._flags == {"VERSION_COMPATIBLE"}
    assert config._pools == {"WORKSPACE": 1 << 30}
    assert config.hardware_compatibility_level == "AMPERE_PLUS"
    assert (sidecar.compute_capabilities, sidecar.version_compatible) == (("8.0+",), True)
    check_runtime(sidecar, flavour="tensorrt", version="11.4.0.106")


def test_tensorrt_builds_for_no_other_gpu(tensorrt, build, left):
    tensorrt()
    for targets, probe in (
        (("8.6",), H100), (("9.0", "8.6"), H100), (("portable",), H100), (("ampere-plus",), T4),
    ):  # fmt: skip
        with pytest.raises(InvalidInput, match="builds for the GPU that it runs on") as caught:
            build(PlanOptions(targets=targets), probe=probe)
        assert ".[tensorrt-rtx]" in str(caught.value)
    assert left() == []


def test_tensorrt_is_not_touched_where_there_is_no_gpu(monkeypatch, build, left, tmp_path):
    """There its builder ends the process."""
    (tmp_path / "tensorrt.py").write_text("import os; os._exit(139)")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    for chosen in (PlanOptions(), PlanOptions(flavour="tensorrt")):
        assert refused(build, chosen).reason == "no_gpu"
    assert left() == []


def test_timings_are_kept_for_the_next_build(tensorrt, build, tmp_path):
    tensorrt()
    timings = tmp_path / "timings"
    for before in (None, NEW_TIMINGS, b"of another GPU"):
        if before is not None:
            timings.write_bytes(before)
        build(PlanOptions(timing_cache=timings), probe=H100)
        assert FakeTensorRT.last._timings.content == NEW_TIMINGS
        assert timings.read_bytes() == NEW_TIMINGS


def test_only_the_last_errors_of_many_are_shown(tensorrt, build, left, tmp_path):
    tensorrt(fails=tuple(f"fault {i}" for i in range(9)))
    error = refused(build, PlanOptions(), probe=H100)
    assert error.reason == "failed"
    assert "; fault 4; fault 5; fault 6; fault 7; fault 8; all of it is in" in str(error)
    assert "fault 3" not in str(error)
    assert "ERROR fault 0" in (tmp_path / "log").read_text()
    assert left() == []


def test_a_builder_that_cannot_start_is_refused(tensorrt, build):
    def null(_logger: object) -> None:  # as the bindings do
        raise TypeError("factory function returned nullptr")

    tensorrt().Builder = null
    error = refused(build, PlanOptions(), probe=H100)
    assert error.reason == "load_failed"
    assert "nullptr" in str(error)


def test_plans_are_named_for_what_they_are_for():
    key = partial(plan_key, probe=H100)
    assert key("fp16", PlanOptions(), "tensorrt") == "trt-fp16.sm90"
    assert key("fp16", PlanOptions(), "tensorrt_rtx") == "trt-fp16.rtx-sm90"
    assert key("int8", RTX, "tensorrt_rtx") == "trt-int8.portable"
    plus = PlanOptions(targets=("ampere-plus",))
    assert key("fp16", plus, "tensorrt") == "trt-fp16.ampere-plus"
    several = PlanOptions(targets=("12.0", "8.6"))
    assert key("fp16", several, "tensorrt_rtx") == "trt-fp16.rtx-sm86-sm120"
