"""Metrics that document themselves: what declares one also writes its row of docs/metrics.md."""

import itertools
from collections.abc import Mapping, Sequence

import msgspec
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

# Label -> its values; those of an open set (models, versions, methods) appear when first used.
Labels = Mapping[str, Sequence[str]]
OPEN: tuple[str, ...] = ()
NO_LABELS: Labels = {}


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One metric, as the page shows it."""

    name: str
    kind: str
    labels: Labels
    buckets: Sequence[float]
    unit: str
    meaning: str


class Declared:
    """Makes metrics in a registry and remembers them, in order.

    A metric whose labels are all closed sets has every series at 0 from the start, so that a rate
    over its first event is not lost.
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

    def histogram(
        self, name: str, meaning: str, buckets: Sequence[float], labels: Labels = NO_LABELS
    ) -> Histogram:
        self._remember(name, "histogram", meaning, labels, buckets)
        metric = Histogram(name, meaning, list(labels), buckets=buckets, registry=self._registry)
        for values in _series(labels):
            metric.labels(*values)
        return metric

    def page(self, introduction: str, ending: str) -> str:
        """Markdown: the introduction, a row a metric, the ending."""
        head = "| metric | type | labels | unit, buckets | meaning |\n|---|---|---|---|---|\n"
        return f"{introduction}\n{head}{''.join(map(_line, self.rows))}\n{ending}"

    def _remember(
        self,
        name: str,
        kind: str,
        meaning: str,
        labels: Labels,
        buckets: Sequence[float] = (),
    ) -> None:
        row = Row(
            name=name, kind=kind, labels=labels, buckets=buckets, unit=_unit(name), meaning=meaning
        )
        self.rows.append(row)


def _series(labels: Labels) -> list[tuple[str, ...]]:
    """Label values of every series; none for metrics without labels or with an open set."""
    return list(itertools.product(*labels.values())) if labels else []


def _unit(name: str) -> str:
    words = name.removesuffix("_total").split("_")
    return next((unit for unit in ("seconds", "bytes", "images") if unit in words), "")


def _line(row: Row) -> str:
    labels = "; ".join(
        f"`{label}`" + (f": {', '.join(values)}" if values else "")
        for label, values in row.labels.items()
    )
    buckets = ", ".join(f"{bound:g}" for bound in row.buckets)
    scale = "; ".join(part for part in (row.unit, buckets) if part)
    return f"| `{row.name}` | {row.kind} | {labels} | {scale} | {row.meaning} |\n"
