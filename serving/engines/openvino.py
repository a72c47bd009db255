"""OpenVINO: the engines "openvino-int8" and "openvino-bf16", for CPUs with AMX."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, cast

import numpy as np

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused
from packshot.image import Pixels
from packshot.machine import has_amx
from serving.engines import Answer, Images

log = logging.getLogger("packshot.engines")

INT8, BF16 = "openvino-int8", "openvino-bf16"
PRECISIONS = {INT8: "f32", BF16: "bf16"}
"""Of what is not quantised, told because the default goes by the CPU."""


class OpenVinoEngine:
    """The model on OpenVINO's CPU device, run by several lanes at once, of one thread each.

    Images run one by one, whatever the batch: here a batch is no faster an image, and each of its
    sizes would be compiled anew, and keep memory of its own (docs/decisions.md).
    """

    lanes_share = False

    def __init__(self, path: Path, *, name: str, lanes: int) -> None:
        """`name`: of `PRECISIONS`. Raises EngineRefused if OpenVINO cannot load the file."""
        self.name = name
        self.lanes = lanes
        self.largest_alone = lanes // 2
        openvino = _import_openvino()
        try:
            core = openvino.Core()
            compiled = _compiled_once(openvino, core, path, self._config(streams=1))

            def load(streams: int) -> _Runs:
                """To run on all the lanes' threads, so many images at a time."""
                loaded = core.import_model(compiled, "CPU", self._config(streams))
                return _Runs(openvino, loaded, streams, compiled)

            self._alone = self._in_lanes = load(lanes)
            if self.largest_alone:
                self._alone = load(1)
        except Exception as error:  # OpenVINO's errors share no narrower base class
            log.exception("OpenVINO cannot load %s", path)
            message = f"{path.name} cannot be loaded: the server's log has the error"
            raise EngineRefused("load_failed", message) from error

    def _config(self, streams: int) -> dict[str, Any]:
        return {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": self.lanes,
            # As many as asked for, which follows the container's quota, where the scheduler likes.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.name],
        }

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        runs = self._alone if alone else self._in_lanes
        answers = [runs.of(image) for image in images]
        logits, embeddings = zip(*answers, strict=True)
        return Answer(np.concatenate(logits), np.concatenate(embeddings))

    def close(self) -> None:
        del self._in_lanes, self._alone


class _Runs:
    """As many at a time as the model was loaded for.

    `weights`: the bytes that it was loaded from, and may go on reading: they have to outlive it.
    """

    def __init__(self, openvino: Any, loaded: Any, count: int, weights: Any) -> None:
        self._free: SimpleQueue[_Run] = SimpleQueue()
        for _ in range(count):
            self._free.put(_Run(openvino, loaded))
        self._weights = weights

    def of(self, image: Pixels) -> Answer:
        """Of uint8 [crop, crop, 3]: arrays [1, ...], the caller's own."""
        run = self._free.get()  # there is one as soon as a run ends: each is given back
        try:
            return run.of(image)
        finally:
            self._free.put(run)


class _Run:
    """One at a time, in memory of its own that is bound once: binding takes 0.1 ms."""

    def __init__(self, openvino: Any, loaded: Any) -> None:
        self._request = loaded.create_infer_request()
        self._image = np.empty([*loaded.input(INPUT).shape], np.uint8)
        self._request.set_tensor(INPUT, openvino.Tensor(self._image, shared_memory=True))
        self._answer = [self._request.get_tensor(name).data for name in (LOGITS, EMBEDDING)]

    def of(self, image: Pixels) -> Answer:
        self._image[0] = image
        self._request.infer()
        return Answer(*(array.copy() for array in self._answer))


def open_openvino(
    file: Callable[[], Path], *, name: str, lanes: int, amx: Callable[[], bool] = has_amx
) -> OpenVinoEngine:
    """The engine, where it is worth its memory. Raises EngineRefused, before it asks for the file.

    `amx`: whether the CPU multiplies tiles of int8 and bfloat16.
    """
    check_openvino(amx)
    return OpenVinoEngine(file(), name=name, lanes=lanes)


def check_openvino(amx: Callable[[], bool] = has_amx) -> str:
    """OpenVINO's version. Raises EngineRefused if this machine is not one for it."""
    if not amx():
        raise EngineRefused(
            "wrong_cpu", "this CPU has no AMX, without which ONNX Runtime is about as fast"
        )
    return str(_import_openvino().__version__)


def _import_openvino() -> Any:
    # Its converter is not needed, and reports usage to its maker when it is imported.
    sys.modules.setdefault("openvino.tools.ovc", cast(ModuleType, None))
    try:
        import openvino
    except Exception as error:  # a library that is there but does not load is no ImportError
        log.exception("openvino cannot be imported")
        raise EngineRefused("no_runtime", "openvino cannot be imported") from error
    return openvino


def _compiled_once(openvino: Any, core: Any, path: Path, config: dict[str, Any]) -> Any:
    """The model compiled for one image: a tensor of bytes, which all that load it share.

    Compiling takes several times as long as loading, and what it leaves behind twice the memory.
    """
    model = core.read_model(path)
    shape = model.input(INPUT).partial_shape
    shape[0] = 1
    model.reshape({INPUT: shape})
    compiled = core.compile_model(model, "CPU", config).export_model()
    return openvino.Tensor(np.array(compiled.getbuffer()), shared_memory=True)
