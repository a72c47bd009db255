"""An engine that a test holds in its hand: it waits, fails and remembers as it is told."""

import threading

import numpy as np

from serving.engines import Answer, Images


class FakeEngine:
    """Answers each image with its first pixel, so that a mix-up of rows shows.

    While `gate` is closed, runs wait in it; `entered` counts those that have begun.
    """

    def __init__(
        self,
        *,
        lanes: int = 1,
        name: str = "fake",
        largest_alone: int = 0,
        lanes_share: bool = False,
        one_by_one: bool = False,
    ) -> None:
        self.name = name
        self.lanes = lanes
        self.lanes_share = lanes_share
        self.one_by_one = one_by_one
        self.largest_alone = largest_alone
        self.alone: list[bool] = []
        self.batches: list[int] = []
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.failures_left = 0
        self.lose_a_row_next = False
        self.closing = threading.Event()

    @property
    def closed(self) -> bool:
        return self.closing.is_set()

    def run(self, images: Images, *, alone: bool = False) -> Answer:
        self.batches.append(len(images))
        self.alone.append(alone)
        self.entered.release()
        assert self.gate.wait(timeout=30)
        if self.failures_left:
            self.failures_left -= 1
            raise RuntimeError("the fake engine was told to fail")
        logits = np.stack(images)[:, 0, 0, :].astype(np.float32)
        if self.lose_a_row_next:
            self.lose_a_row_next = False
            logits = logits[1:]
        return Answer(logits, logits)

    def close(self) -> None:
        self.closing.set()


def image_of(value: int) -> np.ndarray:
    return np.full((2, 2, 3), value, np.uint8)


class Clock:
    """Time as the test says."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
