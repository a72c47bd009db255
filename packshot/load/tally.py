"""What became of the requests of a run: counts, and histograms of times.

Histograms are HDR histograms of microseconds (http://hdrhistogram.org), to three digits, in the
base64 text that its tools exchange: they add up without loss.
"""

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import msgspec
from hdrh.histogram import HdrHistogram

LOWEST_US, HIGHEST_US, DIGITS = 1, 3_600_000_000, 3
MOST_DETAILS = 200  # characters of what a server says
NOT_SENT = "NOT_SENT"  # its deadline had passed before this client came to it
GIVEN_UP = "GIVEN_UP"  # no answer yet, or not even sent, when somebody would wait no longer
SLICES = 10
"""The window in equal parts: how much they differ tells how sure the mean is (batch means)."""


class Window(NamedTuple):
    """The part of a run that counts, on the monotonic clock of the machine."""

    opens: float
    closes: float

    def holds(self, moment: float) -> bool:
        return self.opens <= moment < self.closes

    def slice(self, moment: float) -> int:
        return int((moment - self.opens) / (self.closes - self.opens) * SLICES)


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests due in the window; `*_by_slice`: images, by when they were answered.

    The rate of answers is counted by when they came, as work in progress when the window opens and
    closes is then balanced; all else by when a request was due, so that slow ones are not lost.
    `sent`: all that were due. `in_time`: requests answered within their deadline and the SLO.
    `images_in_all`: answered from the first request on, warm-up included.
    `errors`: requests by status, `error_details` what was first said of each; `image_errors`:
    images in answered requests, by reason. `latency` from due to answered, `refusal` from sent to
    refused for overload, `lag` the client's own delay: from due to sent or, in a closed loop, where
    nothing is due, by how much it was late to wake when it had asked to.
    """

    sent: int
    answered: int
    in_time: int
    errors: dict[str, int]
    image_errors: dict[str, int]
    error_details: dict[str, str] = {}
    images_in_all: int
    images_by_slice: list[int]
    in_time_by_slice: list[int]
    latency: str
    refusal: str
    lag: str
    cpu_seconds: list[float]
    """Of each client process, while the window was open."""


class Recorder:
    """Fills a tally."""

    def __init__(self, window: Window, in_time_seconds: float) -> None:
        self.window = window
        """May be made shorter meanwhile, as long as nothing is recorded that was due after it."""
        self.answered_images = 0
        self.failed = 0
        self._in_time_seconds = in_time_seconds
        self._sent = self._answered = self._in_time = 0
        self._errors: Counter[str] = Counter()
        self._image_errors: Counter[str] = Counter()
        self._error_details: dict[str, str] = {}
        # Of each answer: when it came, with how many usable images, and whether in time.
        self._came, self._good, self._timely = array("d"), array("L"), array("b")
        self._latency, self._refusal, self._lag = (new_histogram() for _ in range(3))

    def sent(self, due: float) -> None:
        if self.window.holds(due):
            self._sent += 1

    def late(self, due: float, seconds: float) -> None:
        """This client, with something that was due."""
        if self.window.holds(due):
            _record(self._lag, seconds)

    def answered(
        self, due: float, now: float, images: int, image_errors: Mapping[str, int]
    ) -> None:
        good = images - sum(image_errors.values())
        in_time = bool(now - due <= self._in_time_seconds)
        self.answered_images += good
        if self.window.holds(due):
            self._answered += 1
            self._in_time += in_time
            self._image_errors.update(image_errors)
            _record(self._latency, now - due)
        self._came.append(now)
        self._good.append(good)
        self._timely.append(in_time)

    def not_answered(self, due: float, code: str, details: str = "") -> None:
        self.failed += 1
        if self.window.holds(due):
            self._errors[code] += 1
            if details:
                self._error_details.setdefault(code, details[:MOST_DETAILS])

    def never_sent(self, dues: Iterable[float], why: str) -> None:
        count = sum(map(self.window.holds, dues))
        self._sent += count
        self.failed += count
        if count:
            self._errors[why] += count

    def refused(self, due: float, seconds: float) -> None:
        """For overload, so long after it was sent."""
        if self.window.holds(due):
            _record(self._refusal, seconds)

    def tally(self, cpu_seconds: float) -> Tally:
        images, in_time = [0] * SLICES, [0] * SLICES
        for came, good, timely in zip(self._came, self._good, self._timely, strict=True):
            if self.window.holds(came):
                images[self.window.slice(came)] += good
                in_time[self.window.slice(came)] += good * timely
        return Tally(
            sent=self._sent,
            answered=self._answered,
            in_time=self._in_time,
            errors=dict(self._errors),
            image_errors=dict(self._image_errors),
            error_details=self._error_details,
            images_in_all=self.answered_images,
            images_by_slice=images,
            in_time_by_slice=in_time,
            latency=_encoded(self._latency),
            refusal=_encoded(self._refusal),
            lag=_encoded(self._lag),
            cpu_seconds=[cpu_seconds],
        )


def merged(tallies: Iterable[Tally]) -> Tally:
    """Of several client processes, in one."""
    all_of = list(tallies)
    return Tally(
        sent=sum(one.sent for one in all_of),
        answered=sum(one.answered for one in all_of),
        in_time=sum(one.in_time for one in all_of),
        errors=_added(one.errors for one in all_of),
        image_errors=_added(one.image_errors for one in all_of),
        error_details={k: v for one in reversed(all_of) for k, v in one.error_details.items()},
        images_in_all=sum(one.images_in_all for one in all_of),
        images_by_slice=_by_slice(one.images_by_slice for one in all_of),
        in_time_by_slice=_by_slice(one.in_time_by_slice for one in all_of),
        latency=_summed(one.latency for one in all_of),
        refusal=_summed(one.refusal for one in all_of),
        lag=_summed(one.lag for one in all_of),
        cpu_seconds=[seconds for one in all_of for seconds in one.cpu_seconds],
    )


def new_histogram() -> HdrHistogram:
    return HdrHistogram(LOWEST_US, HIGHEST_US, DIGITS)


def decoded(text: str) -> HdrHistogram:
    histogram = new_histogram()
    histogram.decode_and_add(text)
    return histogram


def _encoded(histogram: HdrHistogram) -> str:
    text: bytes = histogram.encode()
    return text.decode()


def _record(histogram: HdrHistogram, seconds: float) -> None:
    histogram.record_value(min(max(LOWEST_US, round(seconds * 1e6)), HIGHEST_US))


def _added(counts: Iterable[Mapping[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _by_slice(counts: Iterable[list[int]]) -> list[int]:
    return [sum(each) for each in zip(*counts, strict=True)]


def _summed(texts: Iterable[str]) -> str:
    total = new_histogram()
    for text in texts:
        total.decode_and_add(text)
    return _encoded(total)
