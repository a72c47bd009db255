"""Prometheus metrics. Labels come from closed sets where they can; times are in seconds."""

from functools import cache
from typing import Literal, get_args

import grpc
from prometheus_client import CollectorRegistry
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from packshot.errors import EngineReason, ImageReason
from packshot.services import CLASSIFIER, OPEN_INFERENCE
from packshot.status import CODES
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
REJECTIONS = ("not_found", "damaged", "answers_differ", "no_engine", "failed")
RELOADS = ("swapped", *REJECTIONS)
CLOSED_BY = ("empty", "shared", "full", "deadline")
LOOKUPS = ("hit", "miss")
ANSWERING = (
    (CLASSIFIER, "Classify"),
    (CLASSIFIER, "Embed"),
    (OPEN_INFERENCE, "ModelInfer"),
)
"""Unary methods that users wait for: services with their methods."""
RPC = {"grpc_type": OPEN, "grpc_service": OPEN, "grpc_method": OPEN}


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._of: dict[str, ModelMetrics] = {}
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self.declared = Declared(self.registry)
        self._declare_process(self.declared)
        self._declare_requests(self.declared)
        self._declare_images(self.declared)
        self._declare_engines(self.declared)
        self._declare_certificates(self.declared)
        self._declare_rpcs(self.declared)
        self._expect_answers()

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
        )
        self.access_lines_suppressed = declare.counter(
            "packshot_access_lines_suppressed_total",
            "Requests without a line in the access log, because there were too many a second.",
        )

        self.short_of_memory = declare.counter(
            "packshot_short_of_memory_total",
            "Requests refused, or ended while they were read, because memory was short.",
        )
        self.log_lines_lost = declare.counter(
            "packshot_log_lines_lost_total",
            "Log lines that were not written: what reads the log is too slow, or its disk is full.",
        )

    def _declare_requests(self, declare: Declared) -> None:
        self.stage_seconds = declare.histogram(
            "packshot_stage_seconds",
            "Decode and queue per image, infer per batch, total per answered request.",
            SECONDS,
            {"model": OPEN, "stage": STAGES},
        )
        self.requests_refused = declare.counter(
            "packshot_requests_refused_total",
            "Requests refused: too late for their deadline, no room, or shed for interactive ones.",
            {"model": OPEN, "reason": REFUSALS},
        )
        self.prediction_ratio = declare.histogram(
            "packshot_prediction_ratio",
            "What an answer took over what was predicted when its request was let in.",
            RATIOS,
            {"model": OPEN},
        )

    def _declare_images(self, declare: Declared) -> None:
        self.images = declare.counter(
            "packshot_images_total",
            "Images answered, by result: ok, or the reason why one could not be used.",
            {"model": OPEN, "result": IMAGE_RESULTS},
        )
        self.images_in_progress = declare.gauge(
            "packshot_images_in_progress",
            "Images admitted and not yet answered.",
            {"model": OPEN},
        )
        self.images_dropped = declare.counter(
            "packshot_images_dropped_total",
            "Images taken out of the queue: their deadline passed, or their caller went away.",
            {"model": OPEN, "reason": DROPS},
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
            {"model": OPEN},
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
            {"model": OPEN},
        )
        self.batches_closed = declare.counter(
            "packshot_batches_closed_total",
            "Runs of the engine, by why no more images went along: none waited, the rest is the "
            "share of other lanes, the batch was full, or its most urgent image had no more time.",
            {"model": OPEN, "reason": CLOSED_BY},
        )
        self.engine_in_use = declare.gauge(
            "packshot_engine_in_use",
            "1 for the engine that answers.",
            {"model": OPEN, "version": OPEN, "engine": OPEN},
        )
        self.engine_refusals = declare.counter(
            "packshot_engine_refusals_total",
            "Engines of the order that could not be used, by reason.",
            {"model": OPEN, "engine": OPEN, "reason": get_args(EngineReason)},
        )
        self.engine_failures = declare.counter(
            "packshot_engine_failures_total",
            "Batches on which the engine raised an error.",
            {"model": OPEN, "engine": OPEN},
        )
        self.engine_takeovers = declare.counter(
            "packshot_engine_takeovers_total",
            "Times that another engine took over from one that failed while serving.",
            {"model": OPEN, "failed": OPEN, "successor": OPEN},
        )
        self.reloads = declare.counter(
            "packshot_reloads_total",
            "Other versions found in the store: swapped in, or why they stay out.",
            {"model": OPEN, "result": RELOADS},
        )
        self.rejected_versions = declare.census(
            "packshot_rejected_versions",
            "Versions (or `released` files) of the store that stay out now; no series without one.",
            {"model": OPEN, "reason": REJECTIONS},
        )

    def _declare_certificates(self, declare: Declared) -> None:
        self.certificate_expiry = declare.gauge(
            "packshot_certificate_expiry_timestamp_seconds",
            "When the server's certificate, or the last client authority, ends (Unix time).",
            {"use": OPEN},
        )
        self.certificate_reloads = declare.counter(
            "packshot_certificate_reloads_total",
            "Changed certificates: swapped in, or refused so that the old one goes on.",
            {"result": ("swapped", "refused")},
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
        # Looking a series up by its labels takes three times as long as counting.
        self._started_of = cache(self.started.labels)
        self._handled_of = cache(self.handled.labels)
        self._handling_of = cache(self.handling_seconds.labels)

    def of(self, model: str) -> "ModelMetrics":
        """The metrics of one model, whichever version of it serves."""
        if model not in self._of:
            self._of[model] = ModelMetrics(self, model)
        return self._of[model]

    def _expect_answers(self) -> None:
        """A rate does not see the first of a series: each status that we give is there before."""
        for service, method in ANSWERING:
            for code in (grpc.StatusCode.OK, *CODES.values()):
                self.handled.labels("unary", service, method, code.name)

    def rpc_started(self, service: str, method: str, kind: RpcKind = "unary") -> None:
        self._started_of(kind, service, method).inc()

    def rpc_handled(
        self, service: str, method: str, code: str, seconds: float, kind: RpcKind = "unary"
    ) -> None:
        """`code`: name of the status; `seconds`: since `rpc_started`."""
        self._handled_of(kind, service, method, code).inc()
        self._handling_of(kind, service, method).observe(seconds)


class ModelMetrics:
    """The metrics of one model: its name is filled in, and its series are there from the start."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._all = metrics
        self._model = model
        self._used: tuple[str, str, str] | None = None
        self._stages = {stage: metrics.stage_seconds.labels(model, stage) for stage in STAGES}
        self._results = {result: metrics.images.labels(model, result) for result in IMAGE_RESULTS}
        self._in_progress = metrics.images_in_progress.labels(model)
        self._batch_images = metrics.batch_images.labels(model)
        self._prediction_ratio = metrics.prediction_ratio.labels(model)
        self._top_probability = metrics.top_probability.labels(model)
        self._abstained = metrics.abstained.labels(model)
        for reason in REFUSALS:
            metrics.requests_refused.labels(model, reason)
        self._closed_by = {
            reason: metrics.batches_closed.labels(model, reason) for reason in CLOSED_BY
        }
        for reason in DROPS:
            metrics.images_dropped.labels(model, reason)
        for result in RELOADS:
            metrics.reloads.labels(model, result)

    def stage(self, stage: str, seconds: float) -> None:
        self._stages[stage].observe(seconds)

    def answered(self, result: str) -> None:
        """One image; `result` is one of IMAGE_RESULTS."""
        self._results[result].inc()

    def was_sure(self, probability: float) -> None:
        """Of one image: the probability of its best label."""
        self._top_probability.observe(probability)

    def abstained(self) -> None:
        """One image: no label was probable enough."""
        self._abstained.inc()

    def in_progress(self, images: int) -> None:
        """So many are admitted and not yet answered."""
        self._in_progress.set(images)

    def predicted(self, ratio: float) -> None:
        """What an answer took over what was predicted."""
        self._prediction_ratio.observe(ratio)

    def refused(self, reason: str) -> None:
        self._all.requests_refused.labels(self._model, reason).inc()

    def batch_ran(self, images: int) -> None:
        self._batch_images.observe(images)

    def batch_closed(self, reason: str) -> None:
        """`reason` is one of CLOSED_BY."""
        self._closed_by[reason].inc()

    def dropped(self, reason: str) -> None:
        self._all.images_dropped.labels(self._model, reason).inc()

    def reloaded(self, result: str) -> None:
        self._all.reloads.labels(self._model, result).inc()

    def engine_refused(self, engine: str, reason: str) -> None:
        self._all.engine_refusals.labels(self._model, engine, reason).inc()

    def engine_failed(self, engine: str) -> None:
        self._all.engine_failures.labels(self._model, engine).inc()

    def taken_over(self, failed: str, successor: str) -> None:
        self._all.engine_takeovers.labels(self._model, failed, successor).inc()

    def in_use(self, version: int, engine: str) -> None:
        """That engine of that version answers, and no other."""
        if self._used is not None:
            self._all.engine_in_use.remove(*self._used)
        self._used = (self._model, str(version), engine)
        self._all.engine_in_use.labels(*self._used).set(1)
        self._all.engine_failures.labels(self._model, engine)  # 0: its first failure is an increase
