"""What the dashboard shows: a panel is an entry of the lists below, with its queries.

`deploy/grafana/dashboard.py` draws them.
"""

from typing import NamedTuple

from grafana_foundation_sdk.models import units

JOB = 'namespace=~"$namespace", job=~"$job"'
SERVER = f'{JOB}, instance=~"$instance"'
MODEL = f'{SERVER}, model=~"$model"'
CALLS = f'{SERVER}, grpc_method=~"Classify|ClassifyStream|Embed|ModelInfer|ModelStreamInfer"'
UNARY = f'{SERVER}, grpc_method=~"Classify|Embed|ModelInfer"'
# As in the rules of the SLO.
FAILED = 'grpc_code=~"INTERNAL|UNKNOWN|DATA_LOSS|UNAVAILABLE|DEADLINE_EXCEEDED"'
ALLOWED = 0.001  # share of failures that the SLO allows
# The counter of takeovers has no series before the first: what is 0 for each model.
NONE = f"0 * sum by (model) (packshot_images_in_progress{{{MODEL}}})"


class Query(NamedTuple):
    """PromQL and how a series of it is called in the legend."""

    expr: str
    legend: str


class Panel(NamedTuple):
    """`bad`: values from which a line is drawn in red, or for a number its colours change.

    `whole`: the series add up to something, and are stacked. `top`: highest value that makes sense.
    """

    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    bad: tuple[float, ...] = ()
    whole: bool = False
    top: float | None = None
    kind: str = "timeseries"
    columns: int = 8


def rate(metric: str, *labels: str) -> str:
    return f"rate({metric}{{{', '.join(labels)}}}[$__rate_interval])"


def total(metric: str, *labels: str) -> str:
    return f"sum({rate(metric, *labels)})"


def by(label: str, expr: str) -> str:
    return f"sum by ({label}) ({expr})"


def rates(label: str, metric: str, *labels: str) -> str:
    return by(label, rate(metric, *labels))


def quantile(q: float, metric: str, *labels: str, label: str = "") -> str:
    """Of a histogram, over all servers; one for each value of `label`."""
    kept = f"{label}, le" if label else "le"
    return f"histogram_quantile({q}, {rates(kept, f'{metric}_bucket', *labels)})"


def quantiles(metric: str, *labels: str) -> tuple[Query, ...]:
    return tuple(Query(quantile(q, metric, *labels), f"p{q * 100:g}") for q in (0.5, 0.9, 0.99))


def share(part: str, whole: str) -> str:
    """Nothing, and not 0/0, where there is no whole. A part without a series counts as 0."""
    return f"({part} or 0 * {whole}) / ({whole} > 0)"


ANSWERS = rates("model", "packshot_top_probability_count", MODEL)


def number(title: str, about: str, unit: str, expr: str, *bad: float) -> Panel:
    return Panel(title, about, unit, (Query(expr, ""),), bad, kind="stat", columns=4)


USERS = [
    number(
        "Ready servers", "Servers that accept and answer requests.", units.Short,
        f"sum(packshot_ready{{{SERVER}}})",
    ),
    number(
        "Answered", "Requests answered with OK, a second; streams too.", units.RequestsPerSecond,
        total("grpc_server_handled_total", CALLS, 'grpc_code="OK"'),
    ),
    number(
        "Failed", "Share of unary requests that failed through the server; the SLO allows 0.1 %.",
        units.PercentUnit,
        share(
            total("grpc_server_handled_total", UNARY, FAILED),
            total("grpc_server_handled_total", UNARY),
        ),
        ALLOWED, 14.4 * ALLOWED,
    ),
    number(
        "Refused", "Share of unary requests refused at once, because the answer would be late or "
        "there is no room.", units.PercentUnit,
        share(
            total("grpc_server_handled_total", UNARY, 'grpc_code="RESOURCE_EXHAUSTED"'),
            total("grpc_server_handled_total", UNARY),
        ),
        0.01, 0.05,
    ),
    number(
        "p99 latency", "99 of 100 unary requests end sooner, from arrival in the server on.",
        units.Seconds,
        f"{quantile(0.99, 'grpc_server_handling_seconds', UNARY)} >= 0",  # not NaN while idle
        0.5, 1,
    ),
    number(
        "Saturation", "Share of the last seconds in which lanes or decoders were busy, on average "
        "over the servers.", units.PercentUnit, f"avg(packshot_saturation{{{SERVER}}})", 0.7, 0.9,
    ),
    Panel(
        "Requests by status", "All calls that carry images, by the gRPC status that they ended "
        "with. RESOURCE_EXHAUSTED is a refusal; INTERNAL and UNAVAILABLE are the server's fault.",
        units.RequestsPerSecond,
        (Query(rates("grpc_code", "grpc_server_handled_total", CALLS), "{{grpc_code}}"),),
        whole=True,
    ),
    Panel(
        "Requests by method", "Calls begun, streams too: one stream may be a whole catalogue.",
        units.RequestsPerSecond,
        (Query(rates("grpc_method", "grpc_server_started_total", CALLS), "{{grpc_method}}"),),
        whole=True,
    ),
    Panel(
        "Error budget burn", "How many times too fast the error budget of 30 days is spent; at 1 "
        "it lasts just as long. Pages go out at 14.4 (1 h) and 6 (6 h). Needs the recording rules.",
        units.Short,
        tuple(
            Query(
                f"max(namespace_job:packshot_failures_per_requests:ratio_rate{window}{{{JOB}}}) "
                f"/ {ALLOWED}",
                window,
            )
            for window in ("1h", "6h", "3d")
        ),
        (1,),
    ),
    Panel(
        "Latency of requests", "Of requests that were answered, from arrival to answer.",
        units.Seconds,
        quantiles("packshot_stage_seconds", MODEL, 'stage="total"'), (1,),
    ),
    Panel(
        "p99 latency by stage", "Decode and queue are per image, infer per batch, total per "
        "request. With too much work, queue grows first.", units.Seconds,
        (
            Query(quantile(0.99, "packshot_stage_seconds", MODEL, label="stage"), "{{stage}}"),
        ),
    ),
    Panel(
        "Images by result", "ok, or why an image could not be used: that is its sender's to mend.",
        units.CountsPerSecond,
        (Query(rates("result", "packshot_images_total", MODEL), "{{result}}"),),
        whole=True,
    ),
]  # fmt: skip

LOAD = [
    Panel(
        "Saturation", "0 to 1 for each server: what the autoscaler goes by. It rises before "
        "anything is refused.", units.PercentUnit,
        (Query(f"packshot_saturation{{{SERVER}}}", "{{instance}}"),), (0.9,), top=1,
    ),
    Panel(
        "Images in progress", "Admitted and not yet answered: queued, decoded or in a batch.",
        units.Short, (Query(by("model", f"packshot_images_in_progress{{{MODEL}}}"), "{{model}}"),),
        whole=True,
    ),
    Panel(
        "Time in the queue", "Of an image, until a batch takes it.", units.Seconds,
        quantiles("packshot_stage_seconds", MODEL, 'stage="queue"'),
    ),
    Panel(
        "Refusals by reason", "deadline: it would be late. queue_full: no room. shed: bulk that "
        "made room for interactive requests. A stream's image that waits and asks again counts "
        "each time.", units.RequestsPerSecond,
        (Query(rates("reason", "packshot_requests_refused_total", MODEL), "{{reason}}"),),
        whole=True,
    ),
    Panel(
        "Dropped from the queue", "expired: let in, and too late all the same; it should stay "
        "near 0. cancelled: the caller went away.", units.CountsPerSecond,
        (Query(rates("reason", "packshot_images_dropped_total", MODEL), "{{reason}}"),),
        whole=True,
    ),
    Panel(
        "Actual over predicted time", "Of interactive requests. Much above 1: too much is let in. "
        "Much below: requests are refused that could be answered.", units.Short,
        quantiles("packshot_prediction_ratio", MODEL), (2,),
    ),
    Panel(
        "Images per batch", "A batch takes what waits when a lane is free, without waiting for "
        "more: it grows with the load.", units.Short,
        (
            Query(
                share(
                    rates("model", "packshot_batch_images_sum", MODEL),
                    rates("model", "packshot_batch_images_count", MODEL),
                ),
                "{{model}}",
            ),
        ),
    ),
    Panel(
        "Batches", "Runs of the engine.", units.CountsPerSecond,
        (Query(rates("model", "packshot_batch_images_count", MODEL), "{{model}}"),),
        whole=True,
    ),
    Panel(
        "Cache", "Images looked up among answers already given; all are misses of none if the "
        "cache is off.", units.CountsPerSecond,
        (Query(rates("result", "packshot_cache_lookups_total", SERVER), "{{result}}"),),
        whole=True,
    ),
]  # fmt: skip

ENGINES = [
    Panel(
        "Engine in use", "Servers by the engine that answers. More than one engine for a model: "
        "some servers are slower than others.", units.Short,
        (
            Query(
                by("model, engine", f"packshot_engine_in_use{{{MODEL}}}"), "{{model}}: {{engine}}"
            ),
        ),
        whole=True, columns=6,
    ),
    Panel(
        "Seconds per batch", "Time of one run of the engine.", units.Seconds,
        (
            Query(quantile(0.5, "packshot_stage_seconds", MODEL, 'stage="infer"', label="model"),
                  "{{model}} p50"),
            Query(quantile(0.99, "packshot_stage_seconds", MODEL, 'stage="infer"', label="model"),
                  "{{model}} p99"),
        ),
        columns=6,
    ),
    Panel(
        "Engines refused since the start", "Engines of the order that could not be used. "
        "not_in_bundle, no_gpu, no_driver and wrong_cpu are ordinary on a CPU.", units.Short,
        (
            Query(
                by("engine, reason", f"packshot_engine_refusals_total{{{MODEL}}}"),
                "{{engine}}: {{reason}}",
            ),
        ),
        columns=6,
    ),
    Panel(
        "Failed batches and takeovers", "Batches on which the engine raised an error, a second, "
        "and takeovers by the next engine since the start.", units.Short,
        (
            Query(
                f"{rates('model', 'packshot_engine_failures_total', MODEL)}",
                "{{model}}: batches/s",
            ),
            Query(
                f"{by('model', f'packshot_engine_takeovers_total{{{MODEL}}}')} or {NONE}",
                "{{model}}: takeovers",
            ),
        ),
        columns=6,
    ),
]  # fmt: skip

MODELS = [
    Panel(
        "Version in use", "Servers by the version that answers. For long more than one: a version "
        "stays out somewhere.", units.Short,
        (
            Query(
                by("model, version", f"packshot_engine_in_use{{{MODEL}}}"),
                "{{model}}: version {{version}}",
            ),
        ),
        whole=True, columns=6,
    ),
    Panel(
        "Versions that stay out", "And why, counted on each server; empty where all is well.",
        units.Short,
        (
            Query(
                by("model, reason", f"packshot_rejected_versions{{{MODEL}}}"),
                "{{model}}: {{reason}}",
            ),
        ),
        whole=True, columns=6,
    ),
    Panel(
        "Reloads", "Other versions found in the store: swapped in, or why they stay out.",
        units.Short,
        (
            Query(
                f"sum by (result) (increase(packshot_reloads_total{{{MODEL}}}[$__rate_interval]))",
                "{{result}}",
            ),
        ),
        whole=True, columns=6,
    ),
    Panel(
        "Unsure answers", "unsure: the best label has no more than 50 %. abstained: answered "
        "without a label. A rise means other images than those trained on.", units.PercentUnit,
        (
            Query(
                share(
                    rates("model", "packshot_top_probability_bucket", MODEL, 'le="0.5"'), ANSWERS
                ),
                "{{model}}: unsure",
            ),
            Query(
                share(rates("model", "packshot_images_abstained_total", MODEL), ANSWERS),
                "{{model}}: abstained",
            ),
        ),
        top=1, columns=6,
    ),
    Panel(
        "Probability of the best label", "How many answers were how sure. A shift means other "
        "images or another model.", units.PercentUnit,
        (Query(rates("le", "packshot_top_probability_bucket", MODEL), "{{le}}"),),
        kind="heatmap", columns=24,
    ),
]  # fmt: skip

PROCESS = [
    Panel(
        "CPU", "Cores in use.", units.Short,
        (Query(rate("process_cpu_seconds_total", SERVER), "{{instance}}"),),
    ),
    Panel(
        "Memory", "Resident. It stays flat under overload.", units.BytesIEC,
        (Query(f"process_resident_memory_bytes{{{SERVER}}}", "{{instance}}"),),
    ),
    Panel(
        "Open files", "Connections among them, as a share of the limit.", units.PercentUnit,
        (
            Query(
                f"process_open_fds{{{SERVER}}} / process_max_fds{{{SERVER}}}", "{{instance}}"
            ),
        ),
        (0.8,),
    ),
    Panel(
        "Alive", "0: the event loop hangs or an engine is stuck, and only a restart helps.",
        units.Short, (Query(f"packshot_live{{{SERVER}}}", "{{instance}}"),), top=1, columns=6,
    ),
    Panel(
        "Up for", "A saw-tooth is a server that restarts again and again.", units.Seconds,
        (
            Query(
                f"time() - process_start_time_seconds{{{SERVER}}} "
                f"and on (namespace, job, instance) packshot_live",
                "{{instance}}",
            ),
        ),
        columns=6,
    ),
    Panel(
        "Log", "lost: lines that were not written, because what reads the log is too slow. "
        "suppressed: requests without a line, because there were too many a second.",
        units.CountsPerSecond,
        (
            Query(total("packshot_log_lines_lost_total", SERVER), "lost"),
            Query(total("packshot_access_lines_suppressed_total", SERVER), "suppressed"),
        ),
        columns=6,
    ),
    Panel(
        "Garbage collection", "Of Python's oldest generation, which takes longest.",
        units.CountsPerSecond,
        (Query(rate("python_gc_collections_total", SERVER, 'generation="2"'), "{{instance}}"),),
        columns=6,
    ),
]  # fmt: skip

TLS = [
    Panel(
        "Certificates are valid for", "The server's certificate and the last client authority; "
        "empty where TLS is off.", units.Seconds,
        (
            Query(
                f"min by (use) (packshot_certificate_expiry_timestamp_seconds{{{SERVER}}}) "
                "- time()",
                "{{use}}",
            ),
        ),
        columns=12,
    ),
    Panel(
        "Certificate reloads", "swapped: a new one serves. refused: it could not, and the old one "
        "goes on.", units.Short,
        (
            Query(
                f"sum by (result) "
                f"(increase(packshot_certificate_reloads_total{{{SERVER}}}[$__rate_interval]))",
                "{{result}}",
            ),
        ),
        whole=True, columns=12,
    ),
]  # fmt: skip

ROWS = {
    "What users get": USERS,
    "Load and scheduling": LOAD,
    "Engines": ENGINES,
    "Models": MODELS,
    "Process": PROCESS,
    "TLS": TLS,
}
