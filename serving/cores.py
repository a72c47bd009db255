"""The cores that the lanes of all models share: who may run next, and how long what runs will take.

A lane decodes and runs only while it has a core, so that no more is decoded at once than there are
cores, whatever the number of models; a free one goes to the most urgent image of all of them.
"""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from serving.admission import Urgency
from serving.saturation import Utilisation
from serving.waiting import Item

OVERDUE_SECONDS = 1.0  # beyond what was predicted: it may hang, and nobody waits for its core


class Sharer(Protocol):
    """A scheduler, as those see it that have lanes on the same cores."""

    @property
    def occupied(self) -> bool:
        """Requests are in progress."""
        ...

    def next_item(self) -> Item | None:
        """What it would run if it had a core."""
        ...

    def seconds_ahead(self, urgency: Urgency) -> float:
        """On one core, for what waits there and goes before something of that urgency."""
        ...

    def wake(self) -> None:
        """It may be its turn."""
        ...


@dataclass(eq=False)
class Run:
    """`ends_at`: as predicted."""

    ends_at: float


class Cores:
    """Of a machine; or the workers of one device, which one scheduler has for itself."""

    def __init__(self, count: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.count = count
        self.utilisation = Utilisation(count, clock)
        self._clock = clock
        self._sharers: list[Sharer] = []
        self._running: set[Run] = set()
        self._somebody_blocked = False
        self._look: asyncio.TimerHandle | None = None

    def join(self, sharer: Sharer) -> None:
        self._sharers.append(sharer)

    def leave(self, sharer: Sharer) -> None:
        self._sharers.remove(sharer)

    @property
    def free(self) -> int:
        """Not held, or for longer than anybody waits."""
        now = self._clock()
        return self.count - sum(now <= run.ends_at + OVERDUE_SECONDS for run in self._running)

    @property
    def idle(self) -> bool:
        return not self._running

    @property
    def occupied(self) -> bool:
        """Requests are in progress, of whichever model."""
        return any(sharer.occupied for sharer in self._sharers)

    def busy_seconds(self) -> float:
        """Until all that runs has ended, one after the other."""
        now = self._clock()
        return sum(max(0.0, run.ends_at - now) for run in self._running)

    def seconds_ahead(self, urgency: Urgency, *, of: Sharer) -> float:
        """On one core, for what waits at others and goes before something of that urgency."""
        others = (sharer for sharer in self._sharers if sharer is not of)
        return sum(other.seconds_ahead(urgency) for other in others)

    def has_turn(self, first: Item) -> bool:
        """Whether a sharer's next item may run now; if not, the sharer is woken when it may."""
        other = self.next_elsewhere(first)
        if self.free > 0 and (other is None or first < other):
            return True
        self._somebody_blocked = True
        if self._look is None:  # nothing tells that a run is overdue
            self._look = asyncio.get_running_loop().call_later(OVERDUE_SECONDS, self._look_again)
        return False

    def next_elsewhere(self, first: Item) -> Item | None:
        """What the others would run next, beside the one whose next item this is."""
        items = (sharer.next_item() for sharer in self._sharers)
        return min((one for one in items if one is not None and one is not first), default=None)

    @contextmanager
    def hold(self, seconds: float, *, width: int) -> Iterator[None]:
        """One of them, for about so long. `width`: how many are busy meanwhile."""
        run = Run(self._clock() + seconds)
        self._running.add(run)
        self.utilisation.add(width)
        self.wake_blocked()  # by the item that runs now, as others may be free
        try:
            yield
        finally:
            self._running.discard(run)
            self.utilisation.add(-width)
            self.wake_blocked()

    def wake_blocked(self) -> None:
        """To be called when a sharer drops what it would run next."""
        if not self._somebody_blocked:
            return
        self._somebody_blocked = False
        for sharer in self._sharers:
            sharer.wake()

    def _look_again(self) -> None:
        self._look = None
        self.wake_blocked()
