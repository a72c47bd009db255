"""Prometheus metrics. Labels come from closed sets where they can; times are in seconds.

`python -m serving.metrics` prints docs/metrics.md.
"""

import sys
from typing import Literal, get_args

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from packshot.errors import EngineReason, ImageReason, InvalidInput
from serving.declared import OPEN, Declared

RpcKind = Literal["unary", "client_stream", "server_stream", "bidi_stream"]

SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
BATCH_IMAGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128)
RATIOS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
PROBABILITIES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0)

STAGES = ("decode", "queue", "infer", "total")
IMAGE_RESULTS = ("ok", *get_args(ImageReason))
REFUSALS = ("deadline", "queue_full", "shed")
DROPS = ("expired", "cancelled")
RELOADS = ("swapped", "not_found", "damaged", "answers_differ", "no_engine", "failed")
LOOKUPS = ("hit", "miss")
RPC = {"grpc_type": OPEN, "grpc_service": OPEN, "grpc_method": OPEN}


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.declared = Declared(self.registry)
        self._declare_process(self.declared)
        self._declare_requests(self.declared)
        self._declare_images(self.declared)
        self._declare_engines(self.declared)
        self._declare_rpcs(self.declared)

    def _declare_process(self, declare: Declared) -> None:
        self.ready = declare.gauge(
            "packshot_ready",
            "1 while requests are accepted and answered.",
        )
        self.live = declare.gauge(
            "packshot_live",
            "0 if the event loop hangs or an engine is stuck: only a restart helps.",
        )
        self.saturation = declare.gauge(
            "packshot_saturation",
            "0 to 1: share of the last seconds in which lanes or decoders were busy; "
            "made for autoscaling.",
            {"model": OPEN},
        )
        self.access_lines_suppressed = declare.counter(
            "packshot_access_lines_suppressed_total",
            "Requests without a line in the access log, because there were too many a second.",
        )

    def _declare_requests(self, declare: Declared) -> None:
        self._stage_seconds = declare.histogram(
            "packshot_stage_seconds",
            "Decode and queue per image, infer per batch, total per answered request.",
            SECONDS,
            {"stage": STAGES},
        )
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in STAGES}
        self.requests_refused = declare.counter(
            "packshot_requests_refused_total",
            "Requests refused: too late for their deadline, no room, or shed for interactive ones.",
            {"reason": REFUSALS},
        )
        self.prediction_ratio = declare.histogram(
            "packshot_prediction_ratio",
            "What an answer took over what was predicted when its request was let in.",
            RATIOS,
        )

    def _declare_images(self, declare: Declared) -> None:
        self.images = declare.counter(
            "packshot_images_total",
            "Images answered, by result: ok, or the reason why one could not be used.",
            {"result": IMAGE_RESULTS},
        )
        self.images_in_progress = declare.gauge(
            "packshot_images_in_progress",
            "Images admitted and not yet answered.",
        )
        self.images_dropped = declare.counter(
            "packshot_images_dropped_total",
            "Images taken out of the queue: their deadline passed, or their caller went away.",
            {"reason": DROPS},
        )
        self.abstained = declare.counter(
            "packshot_images_abstained_total",
            "Images answered without a label: no class was probable enough.",
            {"model": OPEN},
        )
        self.top_probability = declare.histogram(
            "packshot_top_probability",
            "Probability of the best label: a shift means other images or another model.",
            PROBABILITIES,
        )
        self.cache_lookups = declare.counter(
            "packshot_cache_lookups_total",
            "Images looked up among answers already given.",
            {"result": LOOKUPS},
        )
        self.cache_bytes = declare.gauge("packshot_cache_bytes", "Memory that kept answers take.")

    def _declare_engines(self, declare: Declared) -> None:
        self.batch_images = declare.histogram(
            "packshot_batch_images",
            "Images per run of the engine.",
            BATCH_IMAGES,
        )
        self.engine_in_use = declare.gauge(
            "packshot_engine_in_use",
            "1 for the engine that answers.",
            {"model": OPEN, "version": OPEN, "engine": OPEN},
        )
        self.engine_refusals = declare.counter(
            "packshot_engine_refusals_total",
            "Engines of the order that could not be used, by reason.",
            {"engine": OPEN, "reason": get_args(EngineReason)},
        )
        self.engine_failures = declare.counter(
            "packshot_engine_failures_total",
            "Batches on which the engine raised an error.",
            {"engine": OPEN},
        )
        self.engine_takeovers = declare.counter(
            "packshot_engine_takeovers_total",
            "Times that another engine took over from one that failed while serving.",
            {"model": OPEN, "failed": OPEN, "successor": OPEN},
        )
        self.reloads = declare.counter(
            "packshot_reloads_total",
            "Other versions found in the store: swapped in, or why they stay out.",
            {"result": RELOADS},
        )

    def _declare_rpcs(self, declare: Declared) -> None:
        self.started = declare.counter("grpc_server_started_total", "RPCs begun.", RPC)
        self.handled = declare.counter(
            "grpc_server_handled_total",
            "RPCs completed, by status as gRPC spells it, such as RESOURCE_EXHAUSTED.",
            {**RPC, "grpc_code": OPEN},
        )
        self.handling_seconds = declare.histogram(
            "grpc_server_handling_seconds",
            "From a request's arrival in the server to its end, whatever the status.",
            SECONDS,
            RPC,
        )

    def stage(self, stage: str, seconds: float) -> None:
        self._stages[stage].observe(seconds)

    def rpc_started(self, service: str, method: str, kind: RpcKind = "unary") -> None:
        self.started.labels(kind, service, method).inc()

    def rpc_handled(
        self, service: str, method: str, code: str, seconds: float, kind: RpcKind = "unary"
    ) -> None:
        """`code`: name of the status; `seconds`: since `rpc_started`."""
        self.handled.labels(kind, service, method, code).inc()
        self.handling_seconds.labels(kind, service, method).observe(seconds)

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own; returns the port. Raises InvalidInput."""
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise InvalidInput(
                f"--metrics-port {port} on {host} cannot be used: {error.strerror}"
            ) from error
        return int(server.server_port)


INTRODUCTION = """\
# Metrics

Written by `python -m serving.metrics`; a test holds it to the code. Series of closed sets of label
values are there from the start, at 0. The usual `process_*` and `python_gc_*` metrics come along.
"""

TO_WATCH = """\
## What to watch

**Goodput.** What users get: requests answered in time, a second.

    sum(rate(grpc_server_handled_total{grpc_method="Classify", grpc_code="OK"}[5m]))

Its latency is the histogram `packshot_stage_seconds{stage="total"}`; the other stages say where
it goes. `queue` grows first when there is too much work.

**Refusals.** Shedding is a normal state under too much load; if it lasts, add servers.

    sum by (reason) (rate(packshot_requests_refused_total[5m]))

`deadline`: the answer would come too late. `queue_full`: more at once than the limits allow.
`shed`: bulk requests that made room for interactive ones.
`packshot_images_dropped_total{reason="expired"}` should stay near 0: such an image was let in and
came too late all the same; `packshot_prediction_ratio` then shows predictions that are too low.

**Saturation.** Scale on it: it rises before anything is refused, whatever the size of requests.

    avg by (model) (packshot_saturation)

**A worse engine than hoped for.** Answers stay right, and become slower or cost more.

    packshot_engine_in_use == 1
    increase(packshot_engine_refusals_total[1h])
    increase(packshot_engine_takeovers_total[1h])

A version that stays out shows in `packshot_reloads_total` with any result but `swapped`.

**Drift of confidence.** Other products, lighting or cameras than those trained on make the network
less sure. Compare the share of unsure answers of an hour with that of a week.

    sum(rate(packshot_top_probability_bucket{le="0.5"}[1h]))
      / sum(rate(packshot_top_probability_count[1h]))

`packshot_images_abstained_total` and the results of `packshot_images_total` other than `ok` tell
of the same from other sides.
"""


def page() -> str:
    """docs/metrics.md."""
    return Metrics().declared.page(INTRODUCTION, TO_WATCH)


if __name__ == "__main__":
    sys.stdout.write(page())
