"""The cores that the lanes of all models share: who may run next, and how long what runs will take.

A lane decodes and runs only while it holds a core, so that no more is decoded at once than there
are cores, whatever the number of models; a free one goes to the most urgent image of all of them.
(An image that runs alone holds one as well, and computes on all.)
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from serving.admission import Urgency
from serving.saturation import Utilisation
from serving.waiting import Item

INTERACTIVE_SECONDS = 10.0  # since the last such request: bulk makes itself small meanwhile
OVERDUE_SECONDS = 1.0  # beyond what was predicted: it may hang, and nobody waits for its core


class Sharer(Protocol):
    """A scheduler, as those see it that have lanes on the same cores."""

    @property
    def occupied(self) -> bool:
        """Requests are in progress, and not only stuck."""
        ...

    def next_item(self) -> Item | None:
        """What it would run if it had a core."""
        ...

    def seconds_ahead(self, urgency: Urgency) -> float:
        """On one core, for what waits there and goes before something of that urgency."""
        ...

    def wake(self) -> None:
        """One of its lanes may have its turn."""
        ...


@dataclass(eq=False)
class Run:
    """`ends_at`: as predicted."""

    of: Sharer
    ends_at: float


class Cores:
    """Of a machine; or, as `one_device`, the workers of a device, which one scheduler has alone."""

    def __init__(
        self, count: int, clock: Callable[[], float] = time.monotonic, *, one_device: bool = False
    ) -> None:
        self.utilisation = Utilisation(count, clock)
        self._count = count
        self._one_device = one_device
        self._clock = clock
        self.sharers: list[Sharer] = []
        self._running: set[Run] = set()
        self._interactive_at = -math.inf
        self._somebody_blocked = False
        self._look: asyncio.TimerHandle | None = None

    def join(self, sharer: Sharer) -> None:
        self.sharers.append(sharer)

    def leave(self, sharer: Sharer) -> None:
        self.sharers.remove(sharer)

    @property
    def free(self) -> int:
        """Not held, or for longer than anybody waits; 0 or less if none is."""
        return self._count - len(self._running) + len(self._overdue())

    @property
    def idle(self) -> bool:
        return self.free == self._count

    @property
    def occupied(self) -> bool:
        """Requests are in progress, of whichever model."""
        return any(sharer.occupied for sharer in self.sharers)

    def overdue(self, sharer: Sharer) -> int:
        """How many of its lanes seem to hang."""
        return sum(run.of is sharer for run in self._overdue())

    def _overdue(self) -> list[Run]:
        now = self._clock()
        return [run for run in self._running if run.ends_at + OVERDUE_SECONDS < now]

    def interactive_came(self) -> None:
        """A request, for whichever model."""
        self._interactive_at = self._clock()

    @property
    def interactive_of_late(self) -> bool:
        """The next may be about to come."""
        return self._clock() - self._interactive_at < INTERACTIVE_SECONDS

    def seconds_until_done(self, work: float) -> float:
        """Until so many seconds of it are, shared out to the cores as what they run now ends."""
        now = self._clock()
        busy = sorted((max(0.0, run.ends_at - now) for run in self._running), reverse=True)
        if self._one_device:  # its workers take turns
            return sum(busy) + work
        ends = sorted(busy[: self._count] + [0.0] * (self._count - len(busy)))
        done = 0.0
        for number, end in enumerate(ends, start=1):
            if number > 1 and done <= end:
                break
            done = (work + sum(ends[:number])) / number
        return done

    def seconds_ahead(self, urgency: Urgency, *, of: Sharer) -> float:
        """On one core, for what waits at others and goes before something of that urgency."""
        others = (sharer for sharer in self.sharers if sharer is not of)
        return sum(other.seconds_ahead(urgency) for other in others)

    def has_turn(self, first: Item) -> bool:
        """Whether a sharer's next item may run now; if not, the sharer is woken when it may."""
        other = self.next_elsewhere(first)
        if self.free > 0 and (other is None or first < other):
            return True
        self._somebody_blocked = True
        self._look_later()
        return False

    def next_elsewhere(self, first: Item) -> Item | None:
        """What the others would run next, beside the one whose next item this is."""
        items = (sharer.next_item() for sharer in self.sharers)
        return min((one for one in items if one is not None and one is not first), default=None)

    @contextmanager
    def hold(self, sharer: Sharer, seconds: float, *, width: int) -> Iterator[None]:
        """One of them, for about so long. `width`: how many are busy meanwhile."""
        run = Run(sharer, self._clock() + seconds)
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
        """Gives a free core away. To be called when a sharer no longer has the item it had next."""
        if not self._somebody_blocked or self.free <= 0:
            return
        waiting = [(item, sharer) for sharer in self.sharers if (item := sharer.next_item())]
        if waiting:
            min(waiting, key=lambda pair: pair[0])[1].wake()  # which calls this again
        else:
            self._somebody_blocked = False

    def _look_later(self) -> None:
        """Nothing tells that a run has become overdue."""
        if self._look is None:
            now, overdue = self._clock(), self._overdue()
            ends = (run.ends_at - now for run in self._running if run not in overdue)
            seconds = min(ends, default=0.0) + OVERDUE_SECONDS
            self._look = asyncio.get_running_loop().call_later(seconds, self._look_again)

    def _look_again(self) -> None:
        self._look = None
        self.wake_blocked()
        if self._somebody_blocked:
            self._look_later()
