"""Engines: what turns a batch of pixels into logits. The seam is the protocol below."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from packshot.image import Pixels
from packshot.prediction import Logits

Images = Sequence[Pixels] | npt.NDArray[np.uint8]
"""A batch: N arrays uint8 [crop, crop, 3], RGB, or one [N, crop, crop, 3]; N at least 1.

Images that come one by one stay so until the engine puts them into batch memory of its own choice
(a GPU's is pinned): one copy, not two.
"""


class Answer(NamedTuple):
    """Logits float32 [N, classes] and embeddings float32 [N, features] of a batch of N."""

    logits: Logits
    embedding: npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs batches; `lanes` of them may run at the same time, each from a thread of its own."""

    name: str
    lanes: int

    def run(self, images: Images) -> Answer:
        """The answer's arrays are the caller's: no later run writes to them."""
        ...

    def close(self) -> None:
        """Frees the model's memory; no run may be in progress."""
        ...
