"""How long a run will take: profiled per batch size at load, refined by every run since.

A network's latency is predictable, so that a table and a slow average are enough to decide before
the work is done whether it can be done in time (Clockwork, OSDI 2020).
"""

import math

from serving.engines import Profile

FRESHNESS = 0.1  # weight of a new measurement: about the last ten count
DEVIATIONS = 3.0
OUTLIER = 4.0  # a run disturbed by a page fault or a neighbour counts as at most so many times


class Average:
    """A slowly moving average that a single outlier cannot move far, and how far values stray."""

    def __init__(self, first: float | None = None) -> None:
        self._value = first
        self._deviation = 0.0

    @property
    def value(self) -> float:
        """0 before anything was observed."""
        return self._value or 0.0

    @property
    def high(self) -> float:
        """What few values exceed: the average and a few mean deviations (Jacobson, 1988)."""
        return self.value + DEVIATIONS * self._deviation

    def observe(self, value: float) -> None:
        if self._value is None:
            self._value = value
        error = min(value, OUTLIER * self._value) - self._value
        self._value += FRESHNESS * error
        self._deviation += FRESHNESS * (abs(error) - self._deviation)


class DecodeTimes:
    """Seconds that decoding an image takes, learnt for each size of file to within a factor of two.

    A photograph of many megapixels takes a hundred times as long as a small one: one average for
    both would be right for neither.
    """

    def __init__(self) -> None:
        self._of_class: dict[int, Average] = {}  # by the bits of the size in bytes

    def seconds(self, size: int) -> float:
        """Of a file of so many bytes; 0 for none, and before any was decoded.

        Of a size that was not seen yet: no more than of the nearest that was. What is let in too
        often is soon known, what is refused never would be.
        """
        if not (size and self._of_class):
            return 0.0
        nearest, ratio = self._nearest(size)
        return nearest.value * min(1.0, ratio)

    def observe(self, size: int, seconds: float) -> None:
        """Of one image; a disturbed one cannot move what is expected of its size far."""
        known = self._of_class.get(size.bit_length())
        if known is not None:
            known.observe(seconds)
            return
        if self._of_class:
            nearest, ratio = self._nearest(size)
            seconds = min(seconds, nearest.value * ratio)
        self._of_class[size.bit_length()] = Average(seconds)

    def _nearest(self, size: int) -> tuple[Average, float]:
        """What is known, and how many times larger this size is."""
        wanted = size.bit_length()
        nearest = min(self._of_class, key=lambda known: abs(known - wanted))
        return self._of_class[nearest], 2.0 ** (wanted - nearest)


class LatencyModel:
    """Seconds that a run of the engine takes, by batch size; `decoding`: of images in its lanes."""

    def __init__(self, profile: Profile) -> None:
        self._lanes = {size: Average(seconds) for size, seconds in profile.lanes.items()}
        self._alone = {size: Average(seconds) for size, seconds in profile.alone.items()}
        self.decoding = DecodeTimes()
        self.largest = max(profile.lanes)
        runs = [*profile.lanes.items(), *profile.alone.items()]
        self.fastest_run_seconds = min(seconds for _, seconds in runs)
        self._least_in_lane = min(seconds / images for images, seconds in profile.lanes.items())
        alone = (seconds / images for images, seconds in profile.alone.items())
        self._least_alone = min(alone, default=math.inf)

    def at_best_seconds(self, images: int, lanes: int) -> float:
        """Of so many images on so many free lanes, if each takes the least that one ever took.

        Averages may become too high: what even this does not allow cannot be done.
        """
        an_image = min(self._least_in_lane / lanes, self._least_alone)
        return max(self.fastest_run_seconds, images * an_image)

    def run_seconds(self, images: int, *, alone: bool = False) -> float:
        """Of one batch of a profiled size."""
        return self._runs(alone)[images].value

    def work_seconds(self, images: int) -> float:
        """Of any number of images, run in full batches one after the other on a lane."""
        full, rest = divmod(images, self.largest)
        return full * self.run_seconds(self.largest) + (self.run_seconds(rest) if rest else 0.0)

    def observe(self, images: int, seconds: float, *, alone: bool = False) -> None:
        self._runs(alone)[images].observe(seconds)
        self.fastest_run_seconds = min(self.fastest_run_seconds, seconds)
        if alone:
            self._least_alone = min(self._least_alone, seconds / images)
        else:
            self._least_in_lane = min(self._least_in_lane, seconds / images)

    def _runs(self, alone: bool) -> dict[int, Average]:
        return self._alone if alone else self._lanes
