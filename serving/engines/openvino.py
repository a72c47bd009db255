"""OpenVINO: the engines "openvino-int8" and "openvino-bf16", for CPUs with AVX-512."""

import logging
import sys
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import ModuleType
from typing import Any, TypeAlias, cast

import numpy as np

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused
from packshot.image import Pixels
from packshot.machine import cpu_flags
from serving.engines import Answer, Images
from serving.engines.compiled import CompiledModels, Content

log = logging.getLogger("packshot.engines")

INT8, BF16 = "openvino-int8", "openvino-bf16"
PRECISIONS = {INT8: "f32", BF16: "bf16"}
"""Of what is not quantised, told because the default goes by the CPU."""

INSTRUCTIONS = {INT8: "avx512_vnni", BF16: "avx512_bf16"}
"""With these it is faster than ONNX Runtime: CPUs with AMX have them too (docs/decisions.md)."""

AMX = "amx_int8"

FORM = "one image"
"""What `_compile` makes besides what is in its configuration: part of the name it is kept by."""

Flags: TypeAlias = Callable[[], Collection[str]]
"""What the CPU can do, as /proc/cpuinfo calls it."""


class OpenVinoEngine:
    """The model on OpenVINO's CPU device: loaded once a lane, to run on the lane's own thread.

    Loaded once for all lanes it would run on threads of OpenVINO, and each hand-over costs time in
    which a core is idle. Images run one by one, whatever the batch: here a batch is no faster an
    image, and each of its sizes would be compiled anew, and keep memory of its own
    (docs/decisions.md).
    """

    lanes_share = False
    one_by_one = True

    def __init__(
        self,
        path: Path,
        *,
        name: str,
        lanes: int,
        flags: Flags = cpu_flags,
        compiled: CompiledModels | None = None,
    ) -> None:
        """`name`: of `PRECISIONS`. `compiled`: where what other starts compiled of the file is.

        Raises EngineRefused if OpenVINO cannot load the file.
        """
        self.name = name
        self.lanes = lanes
        self.largest_alone = int(splits(lanes, flags()))
        openvino = _import_openvino()
        self._threads = ThreadPoolExecutor(lanes, "openvino")
        config = self._config(threads=1)

        def load(content: Content) -> list[_Run]:
            read = openvino.Tensor(content, shared_memory=True)

            def load_one(threads: int) -> _Run:
                loaded = core.import_model(read, "CPU", self._config(threads))
                return _Run(openvino, loaded, read)

            return list(self._threads.map(load_one, [1] * lanes + [lanes] * self.largest_alone))

        try:
            core = openvino.Core()
            if compiled is None:
                runs = load(_compile(core, path, config))
            else:
                made_with = (FORM, openvino.__version__, repr(config), *sorted(flags()))
                runs = compiled.load(made_with, partial(_compile, core, path, config), load)
        except Exception as error:  # OpenVINO's errors share no narrower base class
            log.exception("OpenVINO cannot load %s", path)
            message = f"{path.name} cannot be loaded: the server's log has the error"
            raise EngineRefused("load_failed", message) from error
        self._in_lanes, self._on_all_threads = _Runs(runs[:lanes]), _Runs(runs[lanes:])

    def _config(self, threads: int) -> dict[str, Any]:
        return {
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": threads,
            # As many as asked for, which follows the container's quota, where the scheduler likes.
            "ENABLE_HYPER_THREADING": True,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": PRECISIONS[self.name],
        }

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        """`alone`: several images take a lane each, one that of them all where that is sooner."""
        if not alone:
            answers = [self._in_lanes.of(image) for image in images]
        elif len(images) <= self.largest_alone:
            answers = [self._on_all_threads.of(image) for image in images]
        else:
            answers = list(self._threads.map(self._in_lanes.of, images))
        logits, embeddings = zip(*answers, strict=True)
        return Answer(np.concatenate(logits), np.concatenate(embeddings))

    def close(self) -> None:
        self._threads.shutdown()
        del self._in_lanes, self._on_all_threads


class _Run:
    """One image at a time, in memory of its own that is bound once: binding takes 0.1 ms.

    `read`: the bytes that the model was loaded from, and may go on reading: they outlive it.
    """

    def __init__(self, openvino: Any, loaded: Any, read: Any) -> None:
        self._request = loaded.create_infer_request()
        self._image = np.empty([*loaded.input(INPUT).shape], np.uint8)
        self._request.set_tensor(INPUT, openvino.Tensor(self._image, shared_memory=True))
        self._answer = [self._request.get_tensor(name).data for name in (LOGITS, EMBEDDING)]
        self._read = read

    def of(self, image: Pixels) -> Answer:
        """Of uint8 [crop, crop, 3]: arrays [1, ...], the caller's own."""
        self._image[0] = image
        self._request.infer()
        return Answer(*(array.copy() for array in self._answer))


class _Runs:
    """For as many threads at a time as there are."""

    def __init__(self, runs: Sequence[_Run]) -> None:
        self._free: SimpleQueue[_Run] = SimpleQueue()
        for run in runs:
            self._free.put(run)

    def of(self, image: Pixels) -> Answer:
        """As `_Run.of`."""
        run = self._free.get()  # there is one as soon as a run ends: each is given back
        try:
            return run.of(image)
        finally:
            self._free.put(run)


def splits(lanes: int, flags: Collection[str]) -> bool:
    """Whether a lone image is worth a model of its own that splits it over all cores.

    With AMX a core is done so soon that halves gain little, for two thirds more CPU.
    """
    return lanes >= (4 if AMX in flags else 2)


def open_openvino(
    file: Callable[[], Path],
    *,
    name: str,
    lanes: int,
    flags: Flags = cpu_flags,
    compiled: CompiledModels | None = None,
) -> OpenVinoEngine:
    """The engine, where it is worth its memory. Raises EngineRefused, before it asks for the file.

    `compiled`: where what other starts compiled of the file is.
    """
    check_openvino(name, flags)
    return OpenVinoEngine(file(), name=name, lanes=lanes, flags=flags, compiled=compiled)


def check_openvino(name: str, flags: Flags = cpu_flags) -> str:
    """OpenVINO's version. Raises EngineRefused if this machine is not one for the engine `name`."""
    needed = INSTRUCTIONS[name]
    if needed not in flags():
        raise EngineRefused("wrong_cpu", f"this CPU has no {needed}, which the engine is for")
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


def _compile(core: Any, path: Path, config: dict[str, Any]) -> Content:
    """For one image, as bytes that all lanes load and share.

    Compiling takes several times as long as loading, and what it leaves behind twice the memory.
    """
    model = core.read_model(path)
    shape = model.input(INPUT).partial_shape
    shape[0] = 1
    model.reshape({INPUT: shape})
    compiled = core.compile_model(model, "CPU", config).export_model()
    return np.array(compiled.getbuffer(), np.uint8)
