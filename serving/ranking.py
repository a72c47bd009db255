"""What is told of an image: its most probable labels, or that none is probable enough."""

import msgspec

from packshot.bundle import Manifest
from packshot.errors import InvalidInput
from packshot.prediction import DEFAULT_TOP_K, Logits, Prediction, top_predictions


class Ranking(msgspec.Struct, frozen=True, kw_only=True):
    """What a request wants to know of each image. Raises InvalidInput.

    `top_k` 0 means 5. Without `min_confidence` the bundle's threshold holds.
    """

    top_k: int = 0
    min_confidence: float | None = None

    def __post_init__(self) -> None:
        if self.top_k < 0:
            raise InvalidInput(f"top_k is {self.top_k}; it must be 0 (for {DEFAULT_TOP_K}) or more")
        if self.min_confidence is not None and not 0 <= self.min_confidence <= 1:
            raise InvalidInput(f"min_confidence is {self.min_confidence}; it must be from 0 to 1")


class Classified(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to one image; `abstained`: no label is probable enough."""

    predictions: tuple[Prediction, ...]
    logits: Logits
    abstained: bool


def ranked(logits: Logits, manifest: Manifest, ranking: Ranking) -> Classified:
    """Temperature, softmax, top-k and labels of the version that ran; logits of one image."""
    predictions = top_predictions(
        logits, manifest.labels, ranking.top_k or DEFAULT_TOP_K, manifest.temperature
    )
    threshold = ranking.min_confidence
    abstained = predictions[0].probability < (
        manifest.min_confidence if threshold is None else threshold
    )
    return Classified(predictions=predictions, logits=logits, abstained=abstained)
