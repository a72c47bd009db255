"""A server whose engine answers at once: what is left is the server itself.

python -m benchmarks.null_server --models models --port 0
"""

from collections.abc import Sequence

import numpy as np

from packshot.image import ImageLimits, ImageSpec, Pixels
from serving import pipeline
from serving.__main__ import main
from serving.engines import Answer, Images
from serving.engines.onnxruntime import OnnxRuntimeEngine
from serving.engines.open import ENGINES, Kind, Wanted


class NullEngine:
    """Proves itself with the real model; from then on every answer is the first one it gave."""

    lanes_share = False
    largest_alone = 0

    def __init__(self, wanted: Wanted) -> None:
        self.name = wanted.name
        self.lanes = wanted.lanes
        self._real = OnnxRuntimeEngine(wanted.path, name=wanted.name, lanes=1)
        self._first: Answer | None = None
        self._proofs = 2  # the server asks for the width, then for the golden samples

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        if self._proofs:
            self._proofs -= 1
            self._first = self._real.run(images)
            return self._first
        assert self._first is not None
        rows: Sequence[int] = [0] * len(images)
        return Answer(*(np.take(array, rows, axis=0) for array in self._first))

    def close(self) -> None:
        self._real.close()


def null_decode(_encoded: bytes, spec: ImageSpec, _limits: ImageLimits) -> Pixels:
    return np.zeros(spec.shape, np.uint8)


if __name__ == "__main__":
    pipeline.load_pixels = null_decode
    ENGINES["fp32"] = Kind("fp32", NullEngine)
    raise SystemExit(main())
