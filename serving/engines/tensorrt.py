"""TensorRT and TensorRT-RTX: the engine "tensorrt", from a plan that fits this GPU and version."""

import importlib
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from queue import SimpleQueue
from typing import Any, NamedTuple

import numpy as np

from packshot.bundle import check_file
from packshot.errors import DamagedFile, EngineRefused
from packshot.plan import (
    Flavour,
    PlanSidecar,
    Tensor,
    check_plan,
    check_runtime,
    listed,
    read_sidecar,
    sidecar_path,
)
from serving.engines import Answer, Images
from serving.engines.cudart import Cuda, CudaFailed
from serving.engines.gpu import Gpu, Probe, probe_gpu
from serving.engines.worker import Worker

log = logging.getLogger("packshot.engines")

GRAPH_BATCHES = (1, 2, 4, 8, 16, 32)
"""Sizes worth a CUDA graph each: those that idle and full servers run."""


INSTALL: dict[Flavour, str] = {
    "tensorrt": "`pip install '.[tensorrt]'` in packshot's checkout",
    "tensorrt_rtx": "`pip install '.[tensorrt-rtx]'` in packshot's checkout",
}
"""What brings each."""


class Runtime(NamedTuple):
    """Modules: TensorRT of one flavour, and the CUDA runtime."""

    flavour: Flavour
    trt: Any
    cudart: Any


class TensorRTEngine:
    """One plan, run by two workers: one copies while the other computes.

    Takes any number of images: more than `max_batch` go in several runs.
    """

    name = "tensorrt"
    lanes = 2
    lanes_share = True
    one_by_one = False
    largest_alone = 0

    def __init__(
        self, plan: bytes, sidecar: PlanSidecar, *, max_batch: int, runtime: Runtime
    ) -> None:
        """Raises EngineRefused if TensorRT does not take the plan, CudaFailed if a call fails."""
        trt, cuda = runtime.trt, Cuda(runtime.cudart)
        self._runtime = trt.Runtime(_logger(trt))
        if sidecar.version_compatible:  # the plan brings its own runtime, as code
            self._runtime.engine_host_code_allowed = True
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            message = "TensorRT does not load the plan: its messages are on standard error"
            raise EngineRefused("load_failed", message)
        _check_described(self._engine, trt, sidecar.inputs + sidecar.outputs)
        self._max_batch = max_batch
        self._free: SimpleQueue[Worker] = SimpleQueue()
        with ExitStack() as stack:
            workers = []
            for _ in range(self.lanes):
                workers.append(Worker(self._engine, cuda, sidecar, max_batch=max_batch))
                stack.callback(workers[-1].close)
            _make_ready(workers, sidecar.inputs[0], max_batch)
            self._stack = stack.pop_all()
        for worker in workers:
            self._free.put(worker)

    def run(self, images: Images, *, alone: bool = False) -> Answer:  # noqa: ARG002 - no cores here
        worker = self._free.get()  # at once for as many threads as there are lanes
        try:
            starts = range(0, len(images), self._max_batch)
            parts = [worker.run(images[i : i + self._max_batch]) for i in starts]
        finally:
            self._free.put(worker)
        if len(parts) == 1:
            return parts[0]
        return Answer(*(np.concatenate(rows) for rows in zip(*parts, strict=True)))

    def close(self) -> None:
        self._stack.close()
        # Each needs the next until its end: the workers' contexts, the engine, the runtime.
        del self._engine, self._runtime


@cache
def _logger(trt: Any) -> Any:
    """One for the process: TensorRT keeps a pointer to the first, whichever engine it was for."""
    return trt.Logger(trt.Logger.WARNING)


def import_runtime(flavour: Flavour) -> Runtime:
    """This flavour, or the other one if only that is installed, so that a refusal can name it.

    Raises EngineRefused (no_runtime). Only for a machine with a GPU: see `probe_gpu`.
    """
    other: Flavour = "tensorrt" if flavour == "tensorrt_rtx" else "tensorrt_rtx"
    chosen = other if find_spec(flavour) is None and find_spec(other) is not None else flavour
    try:
        trt = importlib.import_module(chosen)
        cudart = importlib.import_module("cuda.bindings.runtime")
    except (ImportError, OSError) as error:  # OSError: a shared library of theirs is missing
        log.exception("%s cannot be imported", chosen)
        message = f"{chosen} and cuda-bindings are needed ({INSTALL[flavour]}): {error}"
        raise EngineRefused("no_runtime", message) from error
    return Runtime(chosen, trt, cudart)


def open_plan(
    path: Path,
    *,
    max_batch: int,
    image_shape: tuple[int, int, int],
    sidecar_sha256: str | None = None,
    probe: Probe = probe_gpu,
    load: Callable[[Flavour], Runtime] = import_runtime,
) -> TensorRTEngine:
    """The engine for the plan at `path`, described by its sidecar. Raises EngineRefused.

    `sidecar_sha256`: the manifest's, where there is one; the files may have changed since it was
    read.

    In this order: TensorRT ends the process where there is no driver, and says of a plan that does
    not fit only that it is null.
    """
    gpu = probe()
    sidecar, plan = _read(path, sidecar_sha256)
    check_plan(
        sidecar,
        plan,
        compute_capability=gpu.compute_capability,
        max_batch=max_batch,
        image_shape=image_shape,
    )
    runtime = load(sidecar.flavour)
    check_runtime(sidecar, flavour=runtime.flavour, version=runtime.trt.__version__)
    try:
        engine = TensorRTEngine(plan, sidecar, max_batch=max_batch, runtime=runtime)
    except CudaFailed as error:
        raise EngineRefused("load_failed", str(error)) from error
    except (RuntimeError, TypeError) as error:  # the bindings', for what TensorRT cannot make
        log.exception("TensorRT cannot load %s", path)
        message = f"{path.name} cannot be loaded: the server's log has the error"
        raise EngineRefused("load_failed", message) from error
    _log_opened(path, sidecar, gpu)
    return engine


def _read(path: Path, sidecar_sha256: str | None) -> tuple[PlanSidecar, bytes]:
    try:
        if sidecar_sha256 is not None:
            check_file(sidecar_path(path), sidecar_sha256)
        return read_sidecar(sidecar_path(path)), path.read_bytes()
    except DamagedFile as error:
        raise EngineRefused("damaged", str(error)) from error
    except OSError as error:
        raise EngineRefused("damaged", f"{path} cannot be read: {error.strerror}") from error


def _check_described(engine: Any, trt: Any, tensors: Sequence[Tensor]) -> None:
    """Memory is measured out by the sidecar: the plan must not write more than that."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    found = {
        Tensor(
            name=name,
            dtype=np.dtype(trt.nptype(engine.get_tensor_dtype(name))).name,
            shape=tuple(engine.get_tensor_shape(name)),
        )
        for name in names
    }
    if found != set(tensors):
        raise EngineRefused(
            "wrong_shape",
            f"the plan has {listed(sorted(found, key=str))}; its sidecar says {listed(tensors)}",
        )


def _make_ready(workers: Sequence[Worker], images: Tensor, max_batch: int) -> None:
    """Every size on every worker, so that no request pays for a first run; then the graphs."""
    shape = (max_batch, *images.shape[1:])
    brightest = np.linspace(256, 32, max_batch, dtype=np.int64).reshape(-1, 1, 1, 1)
    noise = np.random.default_rng(0).integers(0, brightest, shape, np.uint8)  # no two alike
    for worker in workers:
        for batch in range(1, max_batch + 1):
            worker.run(noise[:batch])
    try:
        for worker in workers:
            worker.capture_graphs([size for size in GRAPH_BATCHES if size <= max_batch], noise)
    except CudaFailed as error:
        log.warning("tensorrt runs without CUDA graphs, somewhat slower: %s", error)
        for worker in workers:
            worker.drop_graphs()


def _log_opened(path: Path, sidecar: PlanSidecar, gpu: Gpu) -> None:
    log.info(
        "%s by %s %s on %s (%s, driver for CUDA %s)",
        path.name, sidecar.flavour, sidecar.version, gpu.name, gpu.sm, gpu.driver_version,
    )  # fmt: skip
