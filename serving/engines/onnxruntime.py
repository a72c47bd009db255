"""ONNX Runtime: the engines "fp32" and "int8" on the CPU, "cuda" on a GPU."""

import logging
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused
from packshot.image import stack
from serving.engines import Answer, Images
from serving.engines.gpu import Probe, probe_gpu

log = logging.getLogger("packshot.engines")

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"
PROVIDER_OPTIONS = {
    CPU: {},
    # TF32 keeps 10 bits of a factor: faster, but no longer the fp32 that the exporter measured.
    CUDA: {"use_tf32": "0"},
}


class OnnxRuntimeEngine:
    """The model on one provider, run by several lanes at once: they share a session's weights.

    On the CPU a lane's runs take one thread each. That keeps all cores busy under load without the
    waiting that splitting one small batch over cores costs. At an idle moment a second session,
    over all cores, answers a lone image sooner (docs/decisions.md).
    """

    one_by_one = False

    def __init__(self, path: Path, *, name: str, lanes: int, provider: str = CPU) -> None:
        """Raises EngineRefused if the runtime or the file cannot be used with this provider."""
        self.name = name
        self.lanes = lanes
        self.lanes_share = provider != CPU
        self.largest_alone = lanes // 2 if provider == CPU else 0
        self._in_lane = _open_session(path, provider, threads=1)
        self._alone = self._in_lane
        if self.largest_alone:
            self._alone = _open_session(path, provider, threads=lanes)

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        batch = images if isinstance(images, np.ndarray) else stack(images)
        session = self._alone if alone else self._in_lane
        return Answer(*session.run([LOGITS, EMBEDDING], {INPUT: batch}))

    def close(self) -> None:
        del self._in_lane, self._alone


def open_cuda(file: Callable[[], Path], probe: Probe = probe_gpu) -> OnnxRuntimeEngine:
    """The engine "cuda": this ONNX file on the GPU, or not at all. Raises EngineRefused.

    The file is asked for where there is a GPU. Two lanes: one copies while the other computes.
    """
    gpu = probe()
    log.info("GPU %s, compute capability %s", gpu.name, gpu.compute_capability)
    return OnnxRuntimeEngine(file(), name="cuda", lanes=2, provider=CUDA)


def _open_session(path: Path, provider: str, *, threads: int) -> Any:
    """An InferenceSession on that provider and no other. Raises EngineRefused."""
    ort = _import_onnxruntime(provider)
    # Exactly one provider: given a choice, onnxruntime falls back without being asked.
    providers = [(provider, PROVIDER_OPTIONS[provider])]
    try:
        options = _session_options(ort, provider, threads)
        session = ort.InferenceSession(path, options, providers=providers)
    except Exception as error:  # onnxruntime's errors share no narrower base class
        log.exception("onnxruntime cannot load %s", path)
        message = f"{path.name} cannot be loaded: the server's log has the error"
        raise EngineRefused("load_failed", message) from error
    session.disable_fallback()
    # A session on a GPU lists the CPU behind it, which the options keep it from using.
    if session.get_providers()[:1] != [provider]:
        raise EngineRefused("load_failed", f"runs on {session.get_providers()}")
    return session


def _import_onnxruntime(provider: str) -> Any:
    # The Linux wheel of onnxruntime reports usage to its maker unless told otherwise first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        log.exception("onnxruntime cannot be imported")
        raise EngineRefused("no_runtime", "onnxruntime cannot be imported") from error
    if provider not in ort.get_available_providers():
        raise EngineRefused(
            "no_runtime",
            f"this onnxruntime was built without {provider}: onnxruntime-gpu has it "
            "(`pip install '.[serve-gpu]'` in packshot's checkout, where onnxruntime is not)",
        )
    return ort


@cache
def _share_memory(ort: Any) -> None:
    """All sessions on the CPU take memory from one pool, which grows by what is asked for."""
    memory = ort.OrtMemoryInfo(
        "Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT
    )
    as_requested = ort.OrtArenaCfg({"arena_extend_strategy": 1})
    ort.create_and_register_allocator(memory, as_requested)


def _session_options(ort: Any, provider: str, threads: int) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while idle would take the CPU from the decoders beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if provider == CPU:
        _share_memory(ort)
        options.add_session_config_entry("session.use_env_allocators", "1")
        # A plan of the memory for each batch size would keep a block for each.
        options.enable_mem_pattern = False
    else:
        # Otherwise a session for a GPU whose libraries are missing is quietly one for the CPU.
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # CUDA and cuDNN as pip installs them are not where the loader looks.
        ort.preload_dlls()
    return options
