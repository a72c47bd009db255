"""The finished network's answers at the size served: what all figures and sheets are made from."""

from collections.abc import Sequence
from functools import cached_property
from typing import Literal

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.image import ImageSpec, Pixels
from packshot.prediction import Logits, probabilities
from trainer.calibrate import fit_temperature
from trainer.data import Example, Split
from trainer.evaluate import Views, predict
from trainer.model import PixelNetwork

Part = Literal["train", "val", "test"]
TRAIN_SAMPLE = 256  # an accuracy is then known to 6 points; all of them may be 100,000


class Answers(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """On N images of one part of the data, in the order of `examples`.

    `views`: uint8 [N, crop, crop, 3], as the server would see them. `logits`: [N, classes].
    """

    part: Part
    examples: tuple[Example, ...]
    views: Pixels
    logits: Logits
    temperature: float

    @cached_property
    def truth(self) -> npt.NDArray[np.int64]:
        """True labels [N]."""
        return np.array([example.label for example in self.examples], np.int64)

    @cached_property
    def shares(self) -> npt.NDArray[np.float64]:
        """Probabilities [N, classes] at the temperature, as a server computes them."""
        return probabilities(self.logits, self.temperature)

    @cached_property
    def said(self) -> npt.NDArray[np.int64]:
        """The answers: the most probable labels [N]."""
        said: npt.NDArray[np.int64] = self.shares.argmax(axis=1)
        return said

    @cached_property
    def confidence(self) -> npt.NDArray[np.float64]:
        """Their probabilities [N]."""
        confidence: npt.NDArray[np.float64] = self.shares.max(axis=1)
        return confidence

    @cached_property
    def right(self) -> npt.NDArray[np.bool_]:
        """Whether they are right [N]."""
        right: npt.NDArray[np.bool_] = self.said == self.truth
        return right


def answered(
    network: PixelNetwork, split: Split, spec: ImageSpec, seed: int
) -> tuple[Answers, ...]:
    """Of a sample of the training images, of all validation and of all test images.

    The temperature is fitted on validation. A part without images is left out.
    """
    examples: dict[Part, Sequence[Example]] = {
        "train": train_sample(split.train, seed),
        "val": split.val,
        "test": split.test,
    }
    views = {part: Views.of(split, chosen, spec) for part, chosen in examples.items() if chosen}
    logits = {part: predict(network, seen.images) for part, seen in views.items()}
    temperature = fit_temperature(logits["val"], views["val"].truth)
    return tuple(
        Answers(
            part=part,
            examples=tuple(examples[part]),
            views=seen.images,
            logits=logits[part],
            temperature=temperature,
        )
        for part, seen in views.items()
    )


def train_sample(train: Sequence[Example], seed: int) -> Sequence[Example]:
    """At most `TRAIN_SAMPLE` of them, drawn by the seed."""
    if len(train) <= TRAIN_SAMPLE:
        return train
    rng = np.random.default_rng([seed, 3])
    return [train[i] for i in np.sort(rng.choice(len(train), TRAIN_SAMPLE, replace=False))]
