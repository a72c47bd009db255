"""ONNX Runtime on the CPU: the engines "fp32" and "int8"."""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused
from packshot.image import stack
from serving.engines import Answer, Images

log = logging.getLogger("packshot.engines")

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """One session of one thread, run by several lanes at once: they share its weights.

    That keeps all cores busy under load without the waiting that splitting one small batch over
    cores costs. At an idle moment a second session, over all cores, answers a lone image sooner
    (docs/decisions.md).
    """

    def __init__(self, path: Path, *, name: str, lanes: int) -> None:
        """Raises EngineRefused if the runtime or the file cannot be used."""
        self.name = name
        self.lanes = lanes
        self.largest_alone = lanes // 2
        self._in_lane = open_session(path, threads=1)
        self._alone = open_session(path, threads=lanes) if self.largest_alone else self._in_lane

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        batch = images if isinstance(images, np.ndarray) else stack(images)
        session = self._alone if alone else self._in_lane
        return Answer(*session.run([LOGITS, EMBEDDING], {INPUT: batch}))

    def close(self) -> None:
        del self._in_lane, self._alone


def open_session(path: Path, *, threads: int) -> Any:
    """An onnxruntime.InferenceSession on the CPU. Raises EngineRefused."""
    # The Linux wheel of onnxruntime reports usage to its maker unless told otherwise first.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        log.exception("onnxruntime cannot be imported")
        raise EngineRefused("no_runtime", "onnxruntime cannot be imported") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Threads that spin while idle would take the CPU from the decoders beside them.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        session = ort.InferenceSession(path, options, providers=[PROVIDER])
    except Exception as error:  # onnxruntime's errors share no narrower base class
        log.exception("onnxruntime cannot load %s", path)
        message = f"{path.name} cannot be loaded: the server's log has the error"
        raise EngineRefused("load_failed", message) from error
    session.disable_fallback()
    if session.get_providers() != [PROVIDER]:
        raise EngineRefused("load_failed", f"runs on {session.get_providers()}")
    return session
