"""Prometheus metrics. Labels come from closed sets; times are in seconds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.gc_collector import GCCollector
from prometheus_client.process_collector import ProcessCollector

from packshot.errors import InvalidInput

SECONDS = (
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75,
    1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
STAGES = ("decode", "queue", "infer", "total")


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        GCCollector(registry=self.registry)
        self._stage_seconds = Histogram(
            "packshot_stage_seconds",
            "Decode and queue per image, infer per batch, total per answered request.",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._stages = {stage: self._stage_seconds.labels(stage) for stage in STAGES}
        self.batch_images = Histogram(
            "packshot_batch_images",
            "Images per run of the engine.",
            buckets=(1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 64, 128),
            registry=self.registry,
        )
        self.images = Counter(
            "packshot_images_total",
            "Images answered, by result: ok, or the reason why one could not be used.",
            ["result"],
            registry=self.registry,
        )
        self.images_in_progress = Gauge(
            "packshot_images_in_progress",
            "Images admitted and not yet answered.",
            registry=self.registry,
        )
        self.requests_refused = Counter(
            "packshot_requests_refused_total",
            "Requests refused: too late for their deadline, no room, or shed for interactive ones.",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("deadline", "queue_full", "shed"):
            self.requests_refused.labels(reason)
        self.images_dropped = Counter(
            "packshot_images_dropped_total",
            "Images taken out of the queue: their deadline passed, or their caller went away.",
            ["reason"],
            registry=self.registry,
        )
        for reason in ("expired", "cancelled"):
            self.images_dropped.labels(reason)
        self.prediction_ratio = Histogram(
            "packshot_prediction_ratio",
            "What an answer took over what was predicted when its request was let in.",
            buckets=(0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2.0, 3.0, 5.0, 10.0),
            registry=self.registry,
        )
        self.reloads = Counter(
            "packshot_reloads_total",
            "Other versions found in the store: swapped in, or why they stay out.",
            ["result"],
            registry=self.registry,
        )
        self.reloads.labels("swapped")
        self.engine_in_use = Gauge(
            "packshot_engine_in_use",
            "1 for the engine that answers.",
            ["model", "version", "engine"],
            registry=self.registry,
        )
        self.engine_refusals = Counter(
            "packshot_engine_refusals_total",
            "Engines of the order that could not be used, by reason.",
            ["engine", "reason"],
            registry=self.registry,
        )
        self.engine_failures = Counter(
            "packshot_engine_failures_total",
            "Batches on which the engine raised an error.",
            ["engine"],
            registry=self.registry,
        )
        self.ready = Gauge(
            "packshot_ready", "1 while requests are accepted and answered.", registry=self.registry
        )
        self.top_probability = Histogram(
            "packshot_top_probability",
            "Probability of the best label: a shift means other images or another model.",
            buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
            registry=self.registry,
        )
        self.certificate_expiry = Gauge(
            "packshot_certificate_expiry_timestamp_seconds",
            "When the server's certificate, or the last client authority, ends (Unix time).",
            ["use"],
            registry=self.registry,
        )
        self.certificate_reloads = Counter(
            "packshot_certificate_reloads_total",
            "Changed certificates: swapped in, or refused so that the old one goes on.",
            ["result"],
            registry=self.registry,
        )
        for result in ("swapped", "refused"):
            self.certificate_reloads.labels(result)
        self.handled = Counter(
            "grpc_server_handled_total",
            "RPCs completed, by status.",
            ["grpc_service", "grpc_method", "grpc_code"],
            registry=self.registry,
        )

    def stage(self, stage: str, seconds: float) -> None:
        self._stages[stage].observe(seconds)

    def serve(self, host: str, port: int) -> int:
        """Serves /metrics from a thread of its own; returns the port. Raises InvalidInput."""
        try:
            server, _ = start_http_server(port, addr=host, registry=self.registry)
        except OSError as error:
            raise InvalidInput(
                f"--http-port {port} on {host} cannot be used: {error.strerror}"
            ) from error
        return int(server.server_port)
