"""Engines: what turns a batch of pixels into logits. The seam is the protocol below."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from packshot.image import Pixels
from packshot.prediction import Logits

Images: TypeAlias = Sequence[Pixels] | npt.NDArray[np.uint8]
"""A batch: N arrays uint8 [crop, crop, 3], RGB, or one [N, crop, crop, 3]; N at least 1.

Images that come one by one stay so until the engine puts them into batch memory of its own choice
(a GPU's is pinned): one copy, not two.
"""


class Answer(NamedTuple):
    """Logits float32 [N, classes] and embeddings float32 [N, features] of a batch of N.

    Of one image: [classes] and [features].
    """

    logits: Logits
    embedding: npt.NDArray[np.float32]


class Profile(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds of a run by batch size, for every size that will be used.

    `lanes`: on one of the lanes. `alone`: on all cores, with nothing else running; may be empty.
    """

    lanes: dict[int, float]
    alone: dict[int, float] = {}


class Engine(Protocol):
    """Runs batches; `lanes` of them may run at the same time, each from a thread of its own.

    `largest_alone`: up to so many images are answered sooner by one run on all cores than by the
    lanes; 0 if never. `lanes_share`: lanes overlap copies with the computing of one device, so that
    two half batches are no faster than a whole one; else each lane has a core of its own.
    `one_by_one`: a batch's images run one after the other, so that each takes as long as one alone.
    """

    name: str
    lanes: int
    lanes_share: bool
    one_by_one: bool
    largest_alone: int

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        """`alone`: no other run is in progress, all cores may be used.

        The answer's arrays are the caller's: no later run writes to them.
        """
        ...

    def close(self) -> None:
        """Frees the model's memory; no run may be in progress."""
        ...
