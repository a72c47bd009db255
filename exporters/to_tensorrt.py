"""ONNX to a TensorRT plan with its sidecar, by `tensorrt` 10 or 11 or by `tensorrt_rtx`.

Precision is the file's ("strongly typed"): fp16 from `to_fp16`, INT8 from a QDQ model with signed
symmetric ranges. What the three libraries differ in is asked of them by attribute, never by version
or by a flag's number: those were renumbered between 10 and 11.

TensorRT times kernels and therefore builds on the GPU that it builds for. TensorRT-RTX leaves that
to the machine that loads the plan, and builds without a GPU. It builds the same every time, but for
the order in which it notes the two outputs of a large network: some hundred bytes of a plan.
"""

import hashlib
import importlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from pathlib import Path
from threading import Event
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from exporters.plan_options import (
    AMPERE_PLUS,
    PORTABLE,
    PlanOptions,
    capabilities_of,
    check_options,
    installed_flavour,
)
from packshot.atomic import write_whole
from packshot.bundle import to_json
from packshot.errors import EngineRefused, InvalidInput
from packshot.plan import (
    BATCH,
    Flavour,
    PlanSidecar,
    Profile,
    Tensor,
    check_tensors,
    sidecar_path,
)
from serving.engines.gpu import Probe, probe_gpu
from serving.engines.tensorrt import INSTALL

SHOWN_ERRORS = 5
"""The last ones of a build that failed."""


class Task(NamedTuple):
    """What to build: the ONNX file's name and contents. `trt`: the module of the flavour."""

    trt: Any
    name: str
    source: bytes
    options: PlanOptions
    capabilities: tuple[str, ...]


class Built(NamedTuple):
    """What TensorRT made. `timings`: the contents of the timing cache, if one was asked for."""

    plan: bytes
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    timings: bytes | None


def build_plan(
    onnx: Path,
    plan: Path,
    options: PlanOptions,
    log: Path,
    *,
    probe: Probe = probe_gpu,
) -> PlanSidecar:
    """Writes `plan` and its sidecar, and to `log` all that TensorRT says. Returns the sidecar.

    Neither is there without the other, whatever fails.

    Raises InvalidInput for an ONNX file that TensorRT cannot parse and for options that the flavour
    does not know; EngineRefused where TensorRT is missing (no_runtime), needs a GPU that is not
    there (no_driver, no_gpu), or fails to build (failed); OSError if the disk is full.
    """
    source = onnx.read_bytes()
    flavour, trt, capabilities = check_buildable(options, probe)
    built = _build_interruptibly(Task(trt, onnx.name, source, options, capabilities), log)
    sidecar = PlanSidecar(
        sha256=hashlib.sha256(built.plan).hexdigest(),
        flavour=flavour,
        version=trt.__version__,
        version_compatible=options.version_compatible,
        compute_capabilities=capabilities,
        profiles=options.profiles,
        inputs=built.inputs,
        outputs=built.outputs,
        source_sha256=hashlib.sha256(source).hexdigest(),
    )
    if options.timing_cache is not None and built.timings is not None:
        write_whole(options.timing_cache, built.timings)
    _write(plan, built.plan, sidecar)
    return sidecar


class Buildable(NamedTuple):
    """What will build: the library, and the compute capabilities that it will build for."""

    flavour: Flavour
    trt: Any
    capabilities: tuple[str, ...]


def check_buildable(options: PlanOptions, probe: Probe = probe_gpu) -> Buildable:
    """All that can be known of a build before there is something to build.

    Raises InvalidInput and EngineRefused as `build_plan` does.
    """
    flavour = installed_flavour(options.flavour)
    check_options(flavour, options)
    if options.timing_cache is not None and not options.timing_cache.parent.is_dir():
        raise InvalidInput(f"{options.timing_cache} cannot be written: there is no such folder")
    try:
        capabilities = capabilities_of(options, flavour, probe)  # before TensorRT needs a driver
    except EngineRefused as error:
        remedy = f"without one, TensorRT-RTX builds for other targets, {PORTABLE} among them"
        raise EngineRefused(error.reason, f"{error}; {remedy}") from error
    trt = _imported(flavour)
    if flavour == "tensorrt_rtx" and options.targets != (PORTABLE,):
        _check_known(trt, capabilities)
    return Buildable(flavour, trt, capabilities)


def _check_known(trt: Any, capabilities: tuple[str, ...]) -> None:
    known = _known_targets(trt)
    if unknown := [one for one in capabilities if one not in known]:
        raise InvalidInput(
            f"TensorRT-RTX {trt.__version__} does not build for compute capability "
            f"{', '.join(unknown)}; it does for {', '.join(known)}, and for {PORTABLE}"
        )


def _imported(flavour: Flavour) -> Any:
    try:
        return importlib.import_module(flavour)
    except (ImportError, OSError) as error:  # OSError: a shared library of it is missing
        raise EngineRefused(
            "no_runtime", f"{flavour} cannot be imported: run {INSTALL[flavour]} anew: {error}"
        ) from error


def _write(plan: Path, content: bytes, sidecar: PlanSidecar) -> None:
    """The sidecar first: a plan never lies without one."""
    beside = sidecar_path(plan)
    try:
        write_whole(beside, to_json(sidecar))
        write_whole(plan, content)
    except BaseException:
        plan.unlink(missing_ok=True)
        beside.unlink(missing_ok=True)
        raise


def _build_interruptibly(task: Task, log: Path) -> Built:
    """Builds in a thread of its own. Signals then come up here, between two steps of the build.

    In a callback from TensorRT an exception, KeyboardInterrupt among them, ends the process.
    """
    messages, cancelled = _messages(task.trt), Event()
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as file, ThreadPoolExecutor(1) as thread:
        messages.start(file)
        try:
            return thread.submit(_build, task, messages, cancelled).result()
        except EngineRefused as error:
            raise EngineRefused(
                error.reason, f"{error}{messages.last_errors()}; all of it is in {log}"
            ) from error
        finally:
            cancelled.set()
            thread.shutdown()  # before the log is closed
            messages.stop()


def _build(task: Task, messages: Any, cancelled: Event) -> Built:
    trt, options = task.trt, task.options
    try:
        builder = trt.Builder(messages)
    except (RuntimeError, TypeError) as error:  # the bindings', for a null pointer
        raise EngineRefused("load_failed", f"TensorRT does not start: {error}") from error
    typed = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(typed)
    _parse(task, network, messages)
    inputs, outputs = _described(task, network)
    config = builder.create_builder_config()
    _set_limits(trt, config, options)
    _set_targets(task, config)
    for one in options.profiles:
        config.add_optimization_profile(_profile(builder, one, inputs[0]))
    timings = _timings(config, options.timing_cache)
    with tqdm(desc="building the plan", unit="step", leave=False, disable=None) as bar:
        monitor = _watch(trt, config, bar, cancelled)
        plan = builder.build_serialized_network(network, config)
        del monitor  # the configuration does not own it
    if plan is None:
        raise EngineRefused("failed", f"TensorRT cannot build a plan from {task.name}")
    cached = None if timings is None else bytes(timings.serialize())
    return Built(bytes(plan), inputs, outputs, cached)


def _parse(task: Task, network: Any, messages: Any) -> None:
    parser = task.trt.OnnxParser(network, messages)
    if not parser.parse(task.source):
        found = [parser.get_error(i) for i in range(parser.num_errors)]
        told = "; ".join(_told(error) for error in found)
        raise InvalidInput(f"TensorRT cannot parse {task.name}: {told}")


def _told(error: Any) -> str:
    """On one line; an error that no node is to blame for has empty names."""
    node = f"{error.node_operator()} {error.node_name()}".strip()
    what = " ".join(error.desc().split())
    return f"{node}: {what}" if node else what


def _described(task: Task, network: Any) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Inputs and outputs, checked before a build that may take minutes."""

    def tensor(one: Any) -> Tensor:
        dtype = np.dtype(task.trt.nptype(one.dtype)).name
        return Tensor(name=one.name, dtype=dtype, shape=tuple(one.shape))

    inputs = tuple(tensor(network.get_input(i)) for i in range(network.num_inputs))
    outputs = tuple(tensor(network.get_output(i)) for i in range(network.num_outputs))
    image = inputs[0].shape[1:] if inputs else ()
    try:
        check_tensors(inputs, outputs, image if BATCH not in image else ())
    except EngineRefused as error:
        raise InvalidInput(f"{task.name} is not a network of packshot's: {error}") from error
    return inputs, outputs


def _set_limits(trt: Any, config: Any, options: PlanOptions) -> None:
    if options.workspace_bytes is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)


def _set_targets(task: Task, config: Any) -> None:
    trt, targets = task.trt, task.options.targets
    if targets == (AMPERE_PLUS,):
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if targets == (PORTABLE,) or not hasattr(config, "set_compute_capability"):
        return  # the library's default: portable for TensorRT-RTX, this GPU for TensorRT
    known = _known_targets(trt)
    config.num_compute_capabilities = len(task.capabilities)
    for index, one in enumerate(task.capabilities):
        config.set_compute_capability(known[one], index)


def _known_targets(trt: Any) -> dict[str, Any]:
    """Compute capability -> TensorRT-RTX's name of it, which is SM86 for 8.6."""
    members = trt.ComputeCapability.__members__.items()
    matches = ((re.fullmatch(r"SM(\d+)(\d)", name), value) for name, value in members)
    return {f"{match[1]}.{match[2]}": value for match, value in matches if match}


def _profile(builder: Any, profile: Profile, images: Tensor) -> Any:
    made = builder.create_optimization_profile()
    sizes = (profile.min_batch, profile.opt_batch, profile.max_batch)
    made.set_shape(images.name, *((size, *images.shape[1:]) for size in sizes))
    return made


def _timings(config: Any, file: Path | None) -> Any:
    """The timing cache in use. One made on another GPU or version is of no use: begin afresh."""
    if file is None:
        return None
    timings = config.create_timing_cache(file.read_bytes() if file.exists() else b"")
    if not config.set_timing_cache(timings, False):
        timings = config.create_timing_cache(b"")
        config.set_timing_cache(timings, False)
    return timings


@cache
def _messages(trt: Any) -> Any:
    """TensorRT's logger: to a file while a plan is built, else warnings to standard error.

    One for the process: TensorRT keeps a pointer to the first, whatever it was for.
    """

    class Messages(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.stop()

        def start(self, file: Any) -> None:
            self._file, self._errors = file, []

        def stop(self) -> None:
            self._file, self._errors = None, []

        def last_errors(self) -> str:
            return "".join(f"; {error}" for error in self._errors[-SHOWN_ERRORS:])

        def log(self, severity: Any, msg: str) -> None:
            bad = severity.name in ("INTERNAL_ERROR", "ERROR")
            if bad:
                self._errors.append(msg)
            with suppress(OSError):  # no exception may leave it: closing tells of a full disk
                if self._file is not None:
                    self._file.write(f"{severity.name} {msg}\n")
                elif bad or severity.name == "WARNING":
                    print(f"TensorRT: {msg}", file=sys.stderr)

    return Messages()


def _watch(trt: Any, config: Any, bar: Any, cancelled: Event) -> Any:
    """Shows progress and can stop the build, where TensorRT reports its steps."""
    if not hasattr(trt, "IProgressMonitor"):
        return None

    class Monitor(trt.IProgressMonitor):
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            with suppress(OSError):
                if parent_phase is None:
                    self._whole = phase_name
                    bar.reset(num_steps)
                bar.set_postfix_str(phase_name)

        def step_complete(self, phase_name: str, _step: int) -> bool:
            with suppress(OSError):
                bar.update(phase_name == self._whole)
            return not cancelled.is_set()

        def phase_finish(self, phase_name: str) -> None:
            pass

    config.progress_monitor = Monitor()
    return config.progress_monitor
