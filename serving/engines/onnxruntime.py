"""ONNX Runtime on the CPU: the engines "fp32" and "int8"."""

import logging
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt

from packshot.bundle import EMBEDDING, INPUT, LOGITS
from packshot.errors import EngineRefused
from serving.engines import Answer

log = logging.getLogger("packshot.engines")

PROVIDER = "CPUExecutionProvider"


class OnnxRuntimeEngine:
    """One session, run from several threads at once: they share its weights.

    With several lanes each runs on one thread. That keeps all cores busy under load without the
    waiting that splitting one small batch over cores costs (docs/decisions.md).
    """

    def __init__(self, path: Path, *, name: str, lanes: int, threads_per_lane: int = 1) -> None:
        """Raises EngineRefused if the runtime or the file cannot be used."""
        # The Linux wheel of onnxruntime reports usage to its maker unless told otherwise first.
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
        try:
            import onnxruntime as ort
        except ImportError as error:
            log.exception("onnxruntime cannot be imported")
            raise EngineRefused("no_runtime", "onnxruntime cannot be imported") from error
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads_per_lane
        options.inter_op_num_threads = 1
        # Threads that spin while idle would take the CPU from the decoders beside them.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = ort.InferenceSession(path, options, providers=[PROVIDER])
        except Exception as error:  # onnxruntime's errors share no narrower base class
            log.exception("onnxruntime cannot load %s", path)
            message = f"{path.name} cannot be loaded: the server's log has the error"
            raise EngineRefused("load_failed", message) from error
        self._session.disable_fallback()
        if self._session.get_providers() != [PROVIDER]:
            raise EngineRefused("load_failed", f"runs on {self._session.get_providers()}")
        self.name = name
        self.lanes = lanes

    def run(self, images: npt.NDArray[np.uint8]) -> Answer:
        return Answer(*self._session.run([LOGITS, EMBEDDING], {INPUT: images}))

    def close(self) -> None:
        del self._session
