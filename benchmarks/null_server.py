"""A server whose engine answers at once: what is left is the server itself.

python -m benchmarks.null_server --models models --port 0
"""

from collections.abc import Sequence
from functools import cache

import msgspec
import numpy as np

from packshot.bundle import Bundle
from packshot.image import ImageLimits, ImageSpec, Pixels
from serving import loading, pipeline, verified
from serving.__main__ import main
from serving.engines import Answer, Engine, Images, Profile
from serving.engines.open import EngineChoice, Opened, open_engine


class NullEngine:
    """In the place of a proved engine, in as many lanes: every answer is its to a black image."""

    lanes_share = False
    one_by_one = False
    largest_alone = 0

    def __init__(self, proved: Engine, spec: ImageSpec, max_batch: int) -> None:
        self.name = proved.name
        self.lanes = proved.lanes
        answer = proved.run(np.zeros((1, *spec.shape), np.uint8))
        self._answers = [
            Answer(*(np.repeat(array, size, axis=0) for array in answer))
            for size in range(max_batch + 1)
        ]

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        return self._answers[len(images)]

    def close(self) -> None:
        """It holds nothing."""


def open_null(
    bundle: Bundle,
    choice: EngineChoice,
    *,
    order: Sequence[str] | None = None,
    pass_over_damaged: bool = False,
) -> Opened:
    """As `open_engine`; the engine is proved as ever, and only then replaced."""
    opened = open_engine(bundle, choice, order=order, pass_over_damaged=pass_over_damaged)
    null = NullEngine(opened.engine, bundle.manifest.image, choice.max_batch)
    opened.engine.close()
    at_once = Profile(lanes=dict.fromkeys(opened.profile.lanes, 0.0))
    return msgspec.structs.replace(opened, engine=null, profile=at_once)


@cache
def black(spec: ImageSpec) -> Pixels:
    return np.zeros(spec.shape, np.uint8)


def null_decode(_encoded: bytes, spec: ImageSpec, _limits: ImageLimits) -> Pixels:
    return black(spec)


if __name__ == "__main__":
    pipeline.load_pixels = null_decode
    verified.open_engine = loading.open_engine = open_null
    raise SystemExit(main())
