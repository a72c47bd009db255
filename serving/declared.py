"""Metrics that document themselves: what declares one also keeps its row of docs/metrics.md."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeAlias

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily

# Label -> its values; those of an open set (models, versions, methods) appear when first used.
Labels = Mapping[str, Sequence[str]]
OPEN: tuple[str, ...] = ()
NO_LABELS: Labels = {}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, as it was declared."""

    name: str
    kind: str
    labels: Labels
    buckets: Sequence[float]
    meaning: str


Counts: TypeAlias = Mapping[tuple[str, ...], int]
"""By the values of a gauge's labels, in order."""


class Census:
    """A gauge of what there is now, counted at each scrape: no series outlives what it is of."""

    def __init__(self, name: str, meaning: str, labels: Sequence[str]) -> None:
        self._described = (name, meaning, labels)
        self._count: Callable[[], Counts] = dict

    def set_function(self, count: Callable[[], Counts]) -> None:
        """`count` is called by the thread that scrapes."""
        self._count = count

    def collect(self) -> Iterator[GaugeMetricFamily]:
        name, meaning, labels = self._described
        family = GaugeMetricFamily(name, meaning, labels=labels)
        for values, number in self._count().items():
            family.add_metric(values, number)
        yield family


class Declared:
    """Makes metrics in a registry and remembers them, in order.

    A metric whose labels are all closed sets has every series at 0 from the start, so that a rate
    over its first event is not lost; a census has those alone that are above 0.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.rows: list[Row] = []
        self._registry = registry

    def counter(self, name: str, meaning: str, labels: Labels = NO_LABELS) -> Counter:
        self._remember(name, "counter", meaning, labels)
        metric = Counter(name, meaning, list(labels), registry=self._registry)
        for values in _series(labels):
            metric.labels(*values)
        return metric

    def gauge(self, name: str, meaning: str, labels: Labels = NO_LABELS) -> Gauge:
        self._remember(name, "gauge", meaning, labels)
        metric = Gauge(name, meaning, list(labels), registry=self._registry)
        for values in _series(labels):
            metric.labels(*values)
        return metric

    def census(self, name: str, meaning: str, labels: Labels) -> Census:
        self._remember(name, "gauge", meaning, labels)
        metric = Census(name, meaning, list(labels))
        self._registry.register(metric)
        return metric

    def histogram(
        self, name: str, meaning: str, buckets: Sequence[float], labels: Labels = NO_LABELS
    ) -> Histogram:
        self._remember(name, "histogram", meaning, labels, buckets)
        metric = Histogram(name, meaning, list(labels), buckets=buckets, registry=self._registry)
        for values in _series(labels):
            metric.labels(*values)
        return metric

    def _remember(
        self,
        name: str,
        kind: str,
        meaning: str,
        labels: Labels,
        buckets: Sequence[float] = (),
    ) -> None:
        self.rows.append(Row(name=name, kind=kind, labels=labels, buckets=buckets, meaning=meaning))


def _series(labels: Labels) -> list[tuple[str, ...]]:
    """Label values of every series; none for metrics without labels or with an open set."""
    return list(itertools.product(*labels.values())) if labels else []
