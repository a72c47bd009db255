"""Logits to ranked labels."""

from collections.abc import Sequence

import msgspec
import numpy as np
import numpy.typing as npt

Logits = npt.NDArray[np.float32]
"""float32 [classes] for one image, [N, classes] for a batch."""


class Prediction(msgspec.Struct, frozen=True, kw_only=True):
    """One label with its probability."""

    label: str
    index: int
    probability: float


def probabilities(logits: Logits, temperature: float = 1.0) -> npt.NDArray[np.float64]:
    """Softmax over the last axis of logits divided by the temperature that calibration found."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    shares: npt.NDArray[np.float64] = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return shares


def top_predictions(
    logits: Logits, labels: Sequence[str], k: int, temperature: float = 1.0
) -> tuple[Prediction, ...]:
    """The `k` most probable labels of one image, best first; ties in the order of the labels."""
    shares = probabilities(logits, temperature)
    best = np.argsort(-shares, kind="stable")[:k]
    return tuple(
        Prediction(label=labels[i], index=int(i), probability=float(shares[i])) for i in best
    )
