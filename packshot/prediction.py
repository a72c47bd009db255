"""Logits to ranked labels."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""float32 [classes] for one image, [N, classes] for a batch."""

DEFAULT_TOP_K = 5
"""Labels that are told of an image, where a request does not say how many."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One label with its probability."""

    label: str
    index: int
    probability: float


def probabilities(logits: Logits, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax over the last axis of logits divided by the temperature that calibration found."""
    shares: npt.NDArray[np.float64] = logits.astype(np.float64)
    shares /= temperature
    # Not `max` and `sum`, which go through Python: of few classes most of the time is the calls'.
    shares -= np.maximum.reduce(shares, axis=-1, keepdims=True)
    np.exp(shares, out=shares)
    shares /= np.add.reduce(shares, axis=-1, keepdims=True)
    return shares


def top_predictions(
    logits: Logits, labels: Sequence[str], k: int, temperature: float = 1.0
) -> tuple[Prediction, ...]:
    """The `k` most probable labels of one image, best first; ties in the order of the labels."""
    shares = probabilities(logits, temperature)
    best: list[int] = (-shares).argsort(kind="stable")[:k].tolist()
    return tuple(
        [Prediction(label=labels[one], index=one, probability=shares.item(one)) for one in best]
    )
