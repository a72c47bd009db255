"""Traces as a collector gets them: a real OTLP receiver on loopback, in this process."""

import json
import logging
import queue
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from opentelemetry.exporter.otlp.proto.grpc import exporter
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as wire
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from opentelemetry.sdk import _shared_internal
from processes import ROOT, TIMEOUT, serving, until
from tiny import PURE, jpeg, tiny_bundle

from packshot.errors import InvalidInput
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
from serving.stages import Stage
from serving.traces import EXPORTING_LOGGERS, Seldom, Traces

METHOD = "packshot.v1.Classifier/Classify"
TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-01")
UNSAMPLED = ("traceparent", f"00-{TRACE}-{PARENT}-00")


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it is sent."""

    def __init__(self):
        self.received = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(1))
        trace_service_pb2_grpc.add_TraceServiceServicer_to_server(self, self._server)
        self.endpoint = f"http://127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def Export(self, request, context):  # noqa: N802 - named by OTLP
        self.received.put(request)
        return wire.ExportTraceServiceResponse()

    def spans(self):
        """Of the one batch that came, by name."""
        (resource,) = self.received.get(timeout=TIMEOUT).resource_spans
        (scope,) = resource.scope_spans
        return {span.name: span for span in scope.spans}

    def all_spans(self):
        """Of all batches that came so far."""
        batches = [self.received.get_nowait() for _ in range(self.received.qsize())]
        return [
            span
            for batch in batches
            for resource in batch.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def stop(self):
        self._server.stop(None).wait()


@pytest.fixture
def collector():
    collector = Collector()
    yield collector
    collector.stop()


def record(traces, metadata=(), code="OK"):
    now = time.monotonic()
    stages = [
        Stage("decode", now - 0.4, now - 0.3),
        Stage("queue", now - 0.3, now - 0.2),
        Stage("infer", now - 0.2, now - 0.1),
    ]
    return traces.record(
        METHOD, metadata, stages,
        started=now - 0.5, ended=now, code=code, attributes={"packshot.images": 3},
    )  # fmt: skip


def attributes(holder):
    """Of a span or a resource."""
    return {
        pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in holder.attributes
    }


def test_a_request_is_a_span_below_the_clients_with_its_stages_below_it(collector):
    traces = Traces(collector.endpoint, ratio=0.0)
    before = time.time_ns()
    assert record(traces, [("user-agent", "x"), SAMPLED]) == TRACE
    after = time.time_ns()
    traces.close()
    spans = collector.spans()
    assert set(spans) == {METHOD, "decode", "queue", "infer"}
    request = spans.pop(METHOD)
    assert {span.trace_id.hex() for span in [request, *spans.values()]} == {TRACE}
    assert (request.parent_span_id.hex(), request.kind) == (PARENT, Span.SPAN_KIND_SERVER)
    assert {span.parent_span_id for span in spans.values()} == {request.span_id}
    assert request.status.code == Status.STATUS_CODE_UNSET
    assert attributes(request) == {
        "rpc.system.name": "grpc", "rpc.method": METHOD, "rpc.response.status_code": "OK",
        "packshot.images": 3,
    }  # fmt: skip
    times = [request.start_time_unix_nano]
    for name in ("decode", "queue", "infer"):
        times += [spans[name].start_time_unix_nano, spans[name].end_time_unix_nano]
    times.append(request.end_time_unix_nano)
    assert times == sorted(times)
    assert [(then - times[0]) / 1e9 for then in times] == pytest.approx(
        [0, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.5], abs=1e-6
    )
    slack = 10_000_000  # the wall clock may be set a little meanwhile
    assert before - slack <= times[-1] <= after + slack


def test_the_service_is_named(collector):
    traces = Traces(collector.endpoint, ratio=1.0)
    record(traces)
    traces.close()
    (resource,) = collector.received.get(timeout=TIMEOUT).resource_spans
    assert attributes(resource.resource)["service.name"] == "packshot"


@pytest.mark.parametrize(
    ("code", "is_error"), [("INTERNAL", True), ("UNAVAILABLE", True), ("INVALID_ARGUMENT", False)]
)
def test_faults_of_the_server_are_errors_and_those_of_the_client_are_not(collector, code, is_error):
    traces = Traces(collector.endpoint, ratio=0.0)
    record(traces, [SAMPLED], code)
    traces.close()
    span = collector.spans()[METHOD]
    assert (span.status.code == Status.STATUS_CODE_ERROR) is is_error
    assert attributes(span)["rpc.response.status_code"] == code
    assert attributes(span).get("error.type") == (code if is_error else None)


def test_the_client_decides_and_others_are_sampled_by_the_ratio(collector):
    never = Traces(collector.endpoint, ratio=0.0)
    assert record(never) is None
    assert record(never, [UNSAMPLED]) is None
    assert record(never, [("traceparent", "nonsense")]) is None
    never.close()
    assert collector.received.empty()
    always = Traces(collector.endpoint, ratio=1.0)
    assert record(always, [UNSAMPLED]) is None
    trace = record(always, [("traceparent", "nonsense")])
    always.close()
    root = collector.spans()[METHOD]
    assert (root.trace_id.hex(), root.parent_span_id) == (trace, b"")


def test_a_collector_that_is_not_there_or_does_not_answer_holds_nothing_up():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        traces = Traces(f"http://127.0.0.1:{silent.getsockname()[1]}", ratio=1.0)
        for _ in range(1000):  # more spans than the queue holds
            assert record(traces)
        traces.close(timeout_seconds=0.05)
        assert "traces" not in {thread.name for thread in threading.enumerate()}


def test_complaints_about_the_collector_are_limited():
    now = [100.0]
    seldom = Seldom(lambda: now[0])

    def passes(level):
        return seldom.filter(logging.makeLogRecord({"levelno": level}))

    assert not passes(logging.WARNING)
    assert passes(logging.ERROR)
    now[0] += 59
    assert not passes(logging.ERROR)
    now[0] += 2
    assert passes(logging.ERROR)


def test_the_limit_is_on_the_loggers_that_complain(collector):
    Traces(collector.endpoint, ratio=0.0).close()
    loggers = (exporter.logger, _shared_internal._logger)
    assert {logger.name for logger in loggers} == set(EXPORTING_LOGGERS)
    for logger in loggers:
        assert [isinstance(one, Seldom) for one in logger.filters].count(True) == 1


@pytest.mark.parametrize("wrong", ["127.0.0.1:4317", "grpc://collector:4317", "http://", ""])
def test_an_endpoint_that_makes_no_sense_is_named(wrong):
    with pytest.raises(InvalidInput, match=f"is '{wrong}'; it must be like"):
        Traces(wrong, ratio=0.0)


def test_without_opentelemetry_it_says_what_to_install():
    script = (
        "import sys\n"
        "sys.modules['opentelemetry'] = None\n"
        "from packshot.errors import InvalidInput\n"
        "try:\n    import serving.traces\n"
        "except InvalidInput as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True)
    remedy = "`pip install '.[otel]'` in packshot's checkout"
    assert done.stdout == f"traces need OpenTelemetry: {remedy}\n"


def test_the_server_without_traces_does_not_load_opentelemetry():
    script = (
        "import sys, serving.app, serving.__main__, serving.logs, serving.http, serving.stages\n"
        "print('opentelemetry' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, text=True, capture_output=True)
    assert done.stdout == "False\n"


def test_a_served_request_is_traced_through_its_stages(collector, tmp_path):
    tiny_bundle(tmp_path)
    with serving("--models", tmp_path, "--otlp-endpoint", collector.endpoint) as server:
        with grpc.insecure_channel(server.target) as channel:
            request = pb.ClassifyRequest(images=[pb.Image(encoded=jpeg(PURE["red"]))])
            metadata = (SAMPLED, ("x-request-id", "order-66"))
            ClassifierStub(channel).Classify(request, timeout=TIMEOUT, metadata=metadata)
        spans = collector.spans()
        until(lambda: "order-66" in server.log)
        assert TRACE in server.log
    assert set(spans) == {METHOD, "decode", "queue", "infer"}
    assert spans[METHOD].parent_span_id.hex() == PARENT
    assert {span.trace_id.hex() for span in spans.values()} == {TRACE}
    told = attributes(spans[METHOD])
    assert (told["packshot.request_id"], told["packshot.images"]) == ("order-66", 1)
    assert told["packshot.model"] == "colours"


def test_a_stream_is_traced_through_the_stages_of_its_first_images(collector, tmp_path):
    """Of more the span would grow for as long as the stream does."""
    tiny_bundle(tmp_path)
    image = pb.Image(encoded=jpeg(PURE["red"]))
    requests = [pb.ClassifyStreamRequest(id=str(number), image=image) for number in range(100)]
    method = "packshot.v1.Classifier/ClassifyStream"
    with serving("--models", tmp_path, "--otlp-endpoint", collector.endpoint) as server:
        with grpc.insecure_channel(server.target) as channel:
            stream = ClassifierStub(channel).ClassifyStream
            assert len(list(stream(iter(requests), timeout=TIMEOUT, metadata=(SAMPLED,)))) == 100
        until(lambda: TRACE in server.log)
        (line,) = [json.loads(line) for line in server.lines if TRACE in line]
        server.stop()
        names = Counter(span.name for span in collector.all_spans())
    assert line["images"] == 100
    assert not {"decode_ms", "queue_ms", "infer_ms"} & line.keys()
    assert names.pop(method) == 1
    assert names == {"decode": 64, "queue": 64, "infer": 64}
