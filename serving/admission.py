"""Who is let in: by the time that an answer will take, and by the room that there is.

A request is let in only if, as far as predictions can tell, it can be answered in time (Clockwork,
OSDI 2020); what would be late is refused at once. Predictions are corrected by what answers took.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum

from packshot.errors import InvalidInput, Overloaded
from serving.latency import Average
from serving.metrics import ModelMetrics
from serving.stages import Stage

RETRY_AFTER_SECONDS = 0.25

Urgency = tuple[int, float]
"""Priority and deadline: the lower, the sooner."""


class Priority(IntEnum):
    """Bulk requests fill what interactive ones leave free, and are shed first."""

    INTERACTIVE = 0
    BULK = 1


@dataclass(eq=False, kw_only=True)
class Ticket:
    """A request that was let in. `pending`: its images that have not begun to run.

    `decode_seconds`: what lanes will need to decode all of its images; `size`: its bytes. Its owner
    sets `answered` when every image of it got an answer. `late`: an image was given up as it would
    be too late. `stages`: what its images went through.
    """

    priority: Priority
    deadline: float
    images: int
    decode_seconds: float
    size: int
    pending: int
    admitted_at: float
    predicted_seconds: float
    answered: bool = False
    shed: bool = False
    late: bool = False
    engine: str = ""  # what ran its images
    stages: list[Stage] = field(default_factory=list)
    urgency: Urgency = field(init=False)

    def __post_init__(self) -> None:
        self.urgency = (self.priority, self.deadline)

    def not_pending(self) -> None:
        """One image fewer: it runs, or never will."""
        self.pending -= 1


class Admission:
    """The requests of one model that are in progress, and what it takes to become one of them."""

    def __init__(
        self,
        *,
        max_images: int,
        max_bytes: int,
        metrics: ModelMetrics,
        clock: Callable[[], float],
    ) -> None:
        self._max_images = max_images
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._clock = clock
        self._tickets: set[Ticket] = set()
        self._bytes = 0
        self._correction = Average(1.0)
        self.images = 0  # in progress: let in, and neither answered nor shed

    @property
    def empty(self) -> bool:
        """Nothing is in progress."""
        return not self._tickets

    def has_room(self, *, images: int, size: int) -> bool:
        """Beside what is in progress; what never has is to be refused for good."""
        fits = self.images + images <= self._max_images and self._bytes + size <= self._max_bytes
        return fits or images > self._max_images or size > self._max_bytes

    def ahead(self, urgency: Urgency) -> tuple[int, float]:
        """Images that have not begun to run and go before one of that urgency.

        The second number: seconds that decoding them takes a lane, on average over each request.
        """
        images, decoding = 0, 0.0
        for ticket in self._tickets:  # of each request: one loop, as there may be hundreds
            if ticket.pending and ticket.urgency <= urgency and not ticket.shed:
                images += ticket.pending
                decoding += ticket.pending * ticket.decode_seconds / ticket.images
        return images, decoding

    def let_in(self, ticket: Ticket, *, at_best_seconds: float) -> list[Ticket]:
        """Returns the bulk requests that are shed for it. Raises Overloaded, InvalidInput.

        `at_best_seconds`: what it will take at least, whatever experience says.
        """
        self._check_time(ticket, at_best_seconds)
        shed = self._make_room(ticket)
        for one in shed:
            one.shed = True
            self._hold(one, -1)
            self._metrics.refused("shed")
        self._tickets.add(ticket)
        self._hold(ticket, 1)
        return shed

    def let_out(self, ticket: Ticket) -> None:
        self._learn(ticket)
        self._tickets.discard(ticket)
        if not ticket.shed:
            self._hold(ticket, -1)

    def hurry(self, deadline: float) -> None:
        """All that is in progress is as urgent from now on as what is interactive by then."""
        for ticket in self._tickets:
            ticket.urgency = min(ticket.urgency, (Priority.INTERACTIVE, deadline))

    def _hold(self, ticket: Ticket, sign: int) -> None:
        self.images += sign * ticket.images
        self._bytes += sign * ticket.size
        self._metrics.in_progress(self.images)

    def _check_time(self, ticket: Ticket, at_best_seconds: float) -> None:
        corrected = ticket.predicted_seconds * self._correction.high
        allowed = ticket.deadline - ticket.admitted_at
        # With nothing else to do a request is tried: estimates that have become too high would
        # otherwise refuse everything, and never be corrected.
        untried = self.empty and allowed >= at_best_seconds
        if corrected > allowed and not untried:
            self._metrics.refused("deadline")
            left = max(0.0, allowed)
            raise Overloaded(
                f"the answer would take {corrected * 1000:.0f} ms and has {left * 1000:.0f} ms: "
                "try again later or allow more time",
                retry_after_seconds=corrected - left,
            )

    def _make_room(self, wanted: Ticket) -> list[Ticket]:
        """Chooses bulk requests, the latest deadline first, if an interactive one needs room."""
        if wanted.images > self._max_images or wanted.size > self._max_bytes:
            raise InvalidInput(
                f"the request has {wanted.images} images of {wanted.size} bytes; at most "
                f"{self._max_images} and {self._max_bytes} are in progress at once: send less"
            )
        free_images = self._max_images - self.images
        free_bytes = self._max_bytes - self._bytes
        if free_images >= wanted.images and free_bytes >= wanted.size:
            return []
        held = (t for t in self._tickets if not t.shed and t.priority > wanted.priority)
        bulk = sorted(held, key=lambda ticket: -ticket.deadline)
        shed: list[Ticket] = []
        while (free_images < wanted.images or free_bytes < wanted.size) and bulk:
            shed.append(bulk.pop(0))
            free_images += shed[-1].images
            free_bytes += shed[-1].size
        if free_images < wanted.images or free_bytes < wanted.size:
            self._metrics.refused("queue_full")
            raise Overloaded(
                f"there is room for {free_images} more images and {free_bytes} more bytes of at "
                f"most {self._max_images} and {self._max_bytes}: try again later",
                retry_after_seconds=RETRY_AFTER_SECONDS,
            )
        return shed

    def _learn(self, ticket: Ticket) -> None:
        """Compares what was predicted with what it took, or with the deadline that it missed."""
        now = self._clock()
        if ticket.late:  # it was told before
            now = max(now, ticket.deadline)
        told = ticket.answered or now >= ticket.deadline
        if told and ticket.predicted_seconds > 0 and ticket.priority is Priority.INTERACTIVE:
            ratio = (now - ticket.admitted_at) / ticket.predicted_seconds
            self._correction.observe(ratio)
            self._metrics.predicted(ratio)
