"""What the server said of itself while the window was open: two readings of its /metrics."""

import time
import urllib.request
from collections.abc import Mapping
from http.client import HTTPException, InvalidURL
from typing import NamedTuple

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from packshot.errors import InvalidInput

STAGES = ("decode", "queue", "infer", "total")
TIMEOUT_SECONDS = 5.0
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))

Labels = tuple[tuple[str, str], ...]


class Reading(NamedTuple):
    """Samples by name and sorted labels; `taken` on the monotonic clock."""

    taken: float
    samples: Mapping[tuple[str, Labels], float]

    @property
    def started(self) -> float | None:
        """When the process began, in Unix seconds; None where the system does not say."""
        return self.samples.get(("process_start_time_seconds", ()))

    def labelled(self, name: str, wanted: Mapping[str, str]) -> dict[Labels, float]:
        return {
            labels: value
            for (found, labels), value in self.samples.items()
            if found == name and wanted.items() <= dict(labels).items()
        }


class StageTimes(msgspec.Struct, frozen=True, kw_only=True):
    """Of a stage of the server. Percentiles are read off its buckets: as exact as those are."""

    count: int
    mean_ms: float
    p50_ms: float
    p99_ms: float


class ServerWindow(msgspec.Struct, frozen=True, kw_only=True):
    """`batches`: runs of the engine by the bucket of their size, such as 4 for 3 < size <= 4.

    `cpu_cores`: CPU seconds a second of the whole process, and `resident_mb` its memory at the end.
    """

    seconds: float
    cpu_cores: float
    cpu_ms_an_image: float | None
    resident_mb: float
    saturation: float
    images: int
    batch_images_mean: float | None
    batches: dict[str, int]
    stages: dict[str, StageTimes]
    refused: dict[str, int]
    dropped: dict[str, int]


def read_metrics(url: str) -> Reading:
    """Raises InvalidInput where no packshot server answers."""
    try:
        with DIRECT.open(url, timeout=TIMEOUT_SECONDS) as page:
            families = list(text_string_to_metric_families(page.read().decode()))
    except (OSError, InvalidURL) as error:
        raise InvalidInput(f"{url} cannot be read: {error}; check --metrics-url") from error
    except HTTPException as error:  # its text is what came, such as bytes of gRPC
        raise InvalidInput(f"{url} gives no answer in HTTP/1: check --metrics-url") from error
    except ValueError as error:
        raise InvalidInput(
            f"{url} has no metrics of a packshot server: {str(error)!r}; check --metrics-url"
        ) from error
    samples = {
        (one.name, tuple(sorted(one.labels.items()))): one.value
        for family in families
        for one in family.samples
    }
    if ("packshot_ready", ()) not in samples:
        raise InvalidInput(f"{url} has no metrics of a packshot server: check --metrics-url")
    return Reading(time.monotonic(), samples)


def between(before: Reading, after: Reading, model: str) -> ServerWindow:
    """Of one model, but for CPU, memory and saturation. Raises InvalidInput if it was restarted."""
    if before.started != after.started:  # counters may have overtaken those of before
        raise InvalidInput("the server was restarted meanwhile: its counters began anew")
    grown = _Grown(before, after, model)
    seconds = after.taken - before.taken
    cpu = grown.total("process_cpu_seconds_total", of_model=False)
    images = round(grown.total("packshot_images_total"))
    runs = grown.total("packshot_batch_images_count")
    return ServerWindow(
        seconds=seconds,
        cpu_cores=cpu / seconds,
        cpu_ms_an_image=cpu * 1000 / images if images else None,
        resident_mb=after.samples.get(("process_resident_memory_bytes", ()), 0.0) / 1e6,
        saturation=after.samples.get(("packshot_saturation", ()), 0.0),
        images=images,
        batch_images_mean=grown.total("packshot_batch_images_sum") / runs if runs else None,
        batches=_batches(grown),
        stages={stage: times for stage in STAGES if (times := _stage_times(grown, stage))},
        refused=grown.by("packshot_requests_refused_total", "reason"),
        dropped=grown.by("packshot_images_dropped_total", "reason"),
    )


class _Grown:
    """How much counters grew."""

    def __init__(self, before: Reading, after: Reading, model: str) -> None:
        self._before = before
        self._after = after
        self._model = {"model": model}

    def each(
        self, name: str, *, of_model: bool = True, stage: str | None = None
    ) -> dict[Labels, float]:
        labels = (self._model if of_model else {}) | ({} if stage is None else {"stage": stage})
        grown = {
            key: value - self._before.samples.get((name, key), 0.0)
            for key, value in self._after.labelled(name, labels).items()
        }
        if any(value < 0 for value in grown.values()):
            raise InvalidInput("its counters shrank: check that --metrics-url is of one server")
        return grown

    def total(self, name: str, *, of_model: bool = True, stage: str | None = None) -> float:
        return sum(self.each(name, of_model=of_model, stage=stage).values())

    def by(self, name: str, label: str) -> dict[str, int]:
        """Those that grew."""
        found = self.each(name).items()
        return {dict(labels)[label]: round(value) for labels, value in found if value}

    def buckets(self, name: str, stage: str | None = None) -> list[tuple[float, float]]:
        """Upper bound, and what grew in this bucket and those below, from the lowest up."""
        found = self.each(f"{name}_bucket", stage=stage).items()
        return sorted((float(dict(labels)["le"]), value) for labels, value in found)


def _batches(grown: _Grown) -> dict[str, int]:
    below, found = 0.0, {}
    for bound, total in grown.buckets("packshot_batch_images"):
        if total > below:
            found["more" if bound == float("inf") else f"{bound:g}"] = round(total - below)
        below = total
    return found


def _stage_times(grown: _Grown, stage: str) -> StageTimes | None:
    name = "packshot_stage_seconds"
    count = grown.total(f"{name}_count", stage=stage)
    if not count:
        return None
    buckets = grown.buckets(name, stage)
    return StageTimes(
        count=round(count),
        mean_ms=grown.total(f"{name}_sum", stage=stage) / count * 1000,
        p50_ms=_quantile(buckets, 0.50) * 1000,
        p99_ms=_quantile(buckets, 0.99) * 1000,
    )


def _quantile(buckets: list[tuple[float, float]], share: float) -> float:
    """Along a straight line within its bucket, as Prometheus' histogram_quantile reads it."""
    rank = share * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, total in buckets:
        if total >= rank and total > below:
            return (
                low
                if bound == float("inf")
                else low + (bound - low) * (rank - below) / (total - below)
            )
        low, below = bound, total
    return low
