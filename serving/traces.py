"""Traces by OpenTelemetry: a span a request, one a stage, sent to a collector in the background.

Optional: import this module only if there is an endpoint. Importing it raises InvalidInput if
OpenTelemetry is not installed.
"""

import logging
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from urllib.parse import urlparse

from packshot import __version__
from packshot.errors import InvalidInput
from serving.stages import Stage

try:
    from opentelemetry.context import Context
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor
    from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
    from opentelemetry.trace import SpanKind, StatusCode, format_trace_id, set_span_in_context
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise InvalidInput(
        "traces need OpenTelemetry: `pip install '.[otel]'` in packshot's checkout"
    ) from error

Metadata = Iterable[tuple[str, str | bytes]]

# Of a server's span; other statuses are the client's doing (OpenTelemetry's conventions for gRPC).
SERVER_FAULTS = frozenset(
    {"UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS"}
)
PROPAGATED = frozenset({"traceparent", "tracestate"})
EXPORT_SECONDS = 5.0  # for one batch, retries included
CLOSE_SECONDS = 2.0
COMPLAINT_SECONDS = 60.0
EXPORTING_LOGGERS = (
    "opentelemetry.exporter.otlp.proto.grpc.exporter",
    "opentelemetry.sdk._shared_internal",
)


class Traces:
    """Records requests after they have ended; `close` sends what is left."""

    def __init__(self, endpoint: str, *, ratio: float) -> None:
        """`endpoint`: http://host:port, or https:// for TLS; raises InvalidInput if it is neither.

        A client that sends `traceparent` decides whether its request is recorded; of the other
        requests the share `ratio`, 0 to 1, is.
        """
        url = urlparse(endpoint)
        if url.scheme not in ("http", "https") or not url.netloc:
            raise InvalidInput(
                f"--otlp-endpoint is {endpoint!r}; it must be like http://127.0.0.1:4317"
            )
        _limit_complaints()
        self._exporter = OTLPSpanExporter(
            endpoint, insecure=url.scheme == "http", timeout=EXPORT_SECONDS
        )
        self._provider = TracerProvider(
            sampler=ParentBased(TraceIdRatioBased(ratio)),
            resource=Resource.create({"service.name": "packshot", "service.version": __version__}),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("packshot")
        self._propagator = TraceContextTextMapPropagator()

    def record(
        self,
        method: str,
        metadata: Metadata,
        stages: Iterable[Stage],
        *,
        started: float,
        ended: float,
        code: str,
        attributes: Mapping[str, str | int | float],
    ) -> str | None:
        """The trace's id, 32 hexadecimal digits, or None if the request is not sampled.

        `method`: as in packshot.v1.Classifier/Classify. `code`: name of the status. Times are
        seconds of `time.monotonic`.
        """
        on_the_wall = _wall_clock()
        span = self._tracer.start_span(
            method, self._parent(metadata), SpanKind.SERVER, start_time=on_the_wall(started)
        )
        if not span.is_recording():
            return None
        span.set_attributes({**_rpc_attributes(method, code), **attributes})
        if code in SERVER_FAULTS:
            span.set_status(StatusCode.ERROR)
        here = set_span_in_context(span, Context())
        for stage in stages:
            child = self._tracer.start_span(stage.name, here, start_time=on_the_wall(stage.started))
            child.end(on_the_wall(stage.ended))
        span.end(on_the_wall(ended))
        return format_trace_id(span.get_span_context().trace_id)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> None:
        """Sends what is left, for `timeout_seconds` at most, and as long again to give up."""
        closing = threading.Thread(target=self._provider.shutdown, name="traces", daemon=True)
        closing.start()
        closing.join(timeout_seconds)
        if closing.is_alive():
            self._exporter.shutdown()  # ends the waiting for a collector that does not answer
            closing.join(timeout_seconds)

    def _parent(self, metadata: Metadata) -> Context:
        carrier = {
            key: value for key, value in metadata if key in PROPAGATED and isinstance(value, str)
        }
        # An empty context, not the current one: whatever runs on this loop is not the parent.
        return self._propagator.extract(carrier, Context()) if carrier else Context()


def _wall_clock() -> Callable[[float], int]:
    """Converts seconds of the monotonic clock to nanoseconds since 1970."""
    offset = time.time_ns() - time.monotonic_ns()
    return lambda seconds: offset + int(seconds * 1e9)


def _rpc_attributes(method: str, code: str) -> dict[str, str]:
    """https://opentelemetry.io/docs/specs/semconv/rpc/grpc/."""
    known = {
        "rpc.system.name": "grpc", "rpc.method": method, "rpc.response.status_code": code,
    }  # fmt: skip
    return {**known, "error.type": code} if code in SERVER_FAULTS else known


class Seldom(logging.Filter):
    """Lets an error through once in `COMPLAINT_SECONDS`, and nothing less than an error."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._next = float("-inf")

    def filter(self, record: logging.LogRecord) -> bool:
        now = self._clock()
        if record.levelno < logging.ERROR or now < self._next:
            return False
        self._next = now + COMPLAINT_SECONDS
        return True


_seldom = Seldom()


def _limit_complaints() -> None:
    """A collector that cannot be reached is worth a line a minute, not one a batch."""
    for name in EXPORTING_LOGGERS:
        logging.getLogger(name).addFilter(_seldom)  # adding it again changes nothing
