"""Answers to images that were seen before, the least recently used forgotten first. Off by default.

The key is the image's content, with the model as it was loaded and its engine: another version, or
the same one loaded anew, never answers from what this one said.
"""

import hashlib
from collections import OrderedDict

from serving.engines import Answer
from serving.metrics import Metrics

ENTRY_BYTES = 512  # of Python's objects around an answer's numbers, about

Key = tuple[object, ...]


class Cache:
    """At most `max_bytes` of answers; with 0 it holds nothing and costs nothing."""

    def __init__(self, max_bytes: int, metrics: Metrics) -> None:
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._answers: OrderedDict[Key, Answer] = OrderedDict()
        self.held_bytes = 0

    def key(self, model: int, engine: str, content: bytes, *, is_pixels: bool) -> Key:
        """`model`: the number of the `Model`. The same bytes as a file mean something else."""
        if not self._max_bytes:
            return ()
        return (model, engine, is_pixels, hashlib.sha256(content).digest())

    def get(self, key: Key) -> Answer | None:
        if not self._max_bytes:
            return None
        found = self._answers.get(key)
        self._metrics.cache_lookups.labels("miss" if found is None else "hit").inc()
        if found is not None:
            self._answers.move_to_end(key)
        return found

    def put(self, key: Key, answer: Answer) -> None:
        # Copies: a row is a view that would keep its whole batch in memory.
        kept = Answer(answer.logits.copy(), answer.embedding.copy())
        if _size(kept) > self._max_bytes or key in self._answers:
            return
        self._answers[key] = kept
        self.held_bytes += _size(kept)
        while self.held_bytes > self._max_bytes:
            self.held_bytes -= _size(self._answers.popitem(last=False)[1])
        self._metrics.cache_bytes.set(self.held_bytes)


def _size(answer: Answer) -> int:
    return answer.logits.nbytes + answer.embedding.nbytes + ENTRY_BYTES
