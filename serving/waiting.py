"""The images that wait for an engine: which runs next, how many together, which are given up.

The earliest deadline runs first, interactive requests before bulk ones; what is cancelled or cannot
be in time any more never reaches the engine (early drop: Nexus, SOSP 2019).
"""

import asyncio
import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from packshot.errors import DeadlineExceeded
from packshot.image import Pixels
from serving.admission import Ticket, Urgency
from serving.engines import Answer
from serving.lanes import Picture
from serving.latency import LatencyModel
from serving.metrics import ModelMetrics

_numbers = itertools.count()  # of all models, whose images come first come first served


@dataclass(order=True)
class Item:
    """One image in the queue. Its waiter owns `answer`."""

    urgency: Urgency
    number: int
    ticket: Ticket = field(compare=False)
    picture: Picture = field(compare=False)
    answer: "asyncio.Future[Answer]" = field(compare=False)
    file_size: int = field(compare=False)  # bytes that a lane has to decode; 0: pixels
    queued_at: float = field(compare=False)

    def picture_if_wanted(self, clock: Callable[[], float]) -> Picture:
        """What a lane takes: decoding it may take long, or be behind others that do.

        That raises DeadlineExceeded before or after it where nobody waits any more.
        """
        if not callable(self.picture):
            return self.picture
        return partial(self._decode, self.picture, clock)

    def _decode(self, decode: Callable[[], Pixels], clock: Callable[[], float]) -> Pixels:
        self._check(clock)
        pixels = decode()
        self._check(clock)
        return pixels

    def _check(self, clock: Callable[[], float]) -> None:
        if self.answer.done() or clock() > self.ticket.deadline:
            raise DeadlineExceeded("nobody waited for the answer any more, or it would be late")


class Waiting:
    """A heap, the most urgent image first. What leaves it no longer counts as pending."""

    def __init__(self, metrics: ModelMetrics, clock: Callable[[], float]) -> None:
        self._metrics = metrics
        self._clock = clock
        self._items: list[Item] = []

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Item]:
        """In no order."""
        return iter(self._items)

    def first(self) -> Item | None:
        """The most urgent."""
        return self._items[0] if self._items else None

    def put(
        self, ticket: Ticket, picture: Picture, answer: "asyncio.Future[Answer]", file_size: int
    ) -> None:
        item = Item(
            ticket.urgency, next(_numbers), ticket, picture, answer, file_size, self._clock()
        )
        heapq.heappush(self._items, item)

    def reorder(self) -> None:
        """By the urgency that their requests have now."""
        for item in self._items:
            item.urgency = item.ticket.urgency
        heapq.heapify(self._items)

    def take(self, most: int) -> list[Item]:
        """The most urgent."""
        items = [heapq.heappop(self._items) for _ in range(min(most, len(self._items)))]
        for item in items:
            item.ticket.not_pending()
        return items

    def take_in_time(self, most: int, latency: LatencyModel) -> list[Item]:
        """No more than let the most urgent be answered in time: answers come when all have run."""
        items = self.take(min(1, most))
        if not items:
            return items
        left = items[0].ticket.deadline - self._clock()
        left -= latency.decoding.seconds(items[0].file_size)
        while len(items) < most:
            left -= latency.decoding.seconds(self._items[0].file_size)
            if latency.run_seconds(len(items) + 1) > left:
                break
            items += self.take(1)
        return items

    def drop_dead(self, latency: LatencyModel, runs_alone: Callable[[int], bool]) -> bool:
        """Takes out what nobody waits for, and what would be late even if it ran at once.

        Returns whether there was any.

        What would be late by the estimates gives way to what would not, and is no less urgent; what
        is left of it goes by the fastest run so far, or estimates that have become too high would
        never be corrected. `runs_alone`: whether so many images would run on all cores at once.
        """
        wanted = [item for item in self._items if not item.answer.done()]
        now = self._clock()
        soonest = now + latency.fastest_run_seconds
        alone = bool(wanted) and runs_alone(len(wanted))
        done = now + latency.run_seconds(1, alone=alone)
        in_time = [
            item for item in wanted
            if item.ticket.deadline >= done + latency.decoding.seconds(item.file_size)
        ]  # fmt: skip
        priorities = {item.ticket.priority for item in in_time}
        kept = {item.number for item in in_time} | {
            item.number
            for item in wanted
            if item.ticket.deadline >= soonest
            and not any(other <= item.ticket.priority for other in priorities)
        }
        if len(kept) == len(self._items):
            return False
        for item in self._items:
            if item.number not in kept:
                self._drop(item, soonest)
        self._items = [item for item in self._items if item.number in kept]
        heapq.heapify(self._items)
        return True

    def _drop(self, item: Item, soonest: float) -> None:
        item.ticket.not_pending()
        self.give_up(item, soonest)

    def give_up(self, item: Item, soonest: float) -> None:
        """One that nobody waits for, or that could be answered at `soonest` only."""
        # A caller is told of its deadline by its own clock too: cancelled at it is expired.
        cancelled = item.answer.done() and item.ticket.deadline >= soonest
        item.ticket.late |= not cancelled
        self._metrics.dropped("cancelled" if cancelled else "expired")
        if not item.answer.done():
            message = "the deadline would pass before the answer"
            item.answer.set_exception(DeadlineExceeded(message))
