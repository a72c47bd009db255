"""How busy workers were, as an autoscaler wants to know it."""

import math
import time
from collections.abc import Callable

MEMORY_SECONDS = 10.0


class Utilisation:
    """Share of `width` workers that were busy in the last seconds, 0 to 1.

    An average over time in which what was `MEMORY_SECONDS` ago counts a third of what is now. It is
    moved by one thread; `share` may be asked from any.
    """

    def __init__(self, width: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._width = width
        self._clock = clock
        self._busy = 0
        self._share, self._at = 0.0, clock()

    def add(self, workers: int) -> None:
        """So many more (or, negative, fewer) are busy from now on."""
        self._share, self._at = self.share(), self._clock()
        self._busy += workers

    def share(self) -> float:
        kept = math.exp((self._at - self._clock()) / MEMORY_SECONDS)
        return kept * self._share + (1 - kept) * min(1.0, self._busy / self._width)
