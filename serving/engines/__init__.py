"""Engines: what turns a batch of pixels into logits. The seam is the protocol below."""

from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from packshot.prediction import Logits


class Answer(NamedTuple):
    """Logits float32 [N, classes] and embeddings float32 [N, features] of a batch of N."""

    logits: Logits
    embedding: npt.NDArray[np.float32]


class Engine(Protocol):
    """Runs batches; `lanes` of them may run at the same time, each from a thread of its own."""

    name: str
    lanes: int

    def run(self, images: npt.NDArray[np.uint8]) -> Answer:
        """uint8 [N, crop, crop, 3], RGB, N at least 1."""
        ...

    def close(self) -> None:
        """Frees the model's memory; no run may be in progress."""
        ...
