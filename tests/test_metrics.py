"""The page of metrics is the code's, and Prometheus's own linter finds nothing to say."""

import os
import shutil
import subprocess
import urllib.request

import pytest
from processes import ROOT, TIMEOUT
from prometheus_client import Counter, Gauge, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from tiny import PURE, jpeg

from packshot import Client
from serving import metrics
from serving.metrics import Metrics
from serving.metrics_page import page, unit_of
from serving.reload import REASONS


def sample(counted: Metrics, name: str, **labels: str) -> float | None:
    return counted.registry.get_sample_value(name, labels)


def test_the_page_is_what_the_code_declares():
    written = (ROOT / "docs" / "metrics.md").read_text()
    assert written == page(), "run: python -m serving.metrics_page > docs/metrics.md"


def test_every_metric_of_the_registry_is_on_the_page():
    exposed = {
        family.name
        for family in Metrics().registry.collect()
        if family.name.startswith(("packshot_", "grpc_"))
    }
    declared = {row.name.removesuffix("_total") for row in Metrics().declared.rows}
    assert declared == exposed


def test_series_of_closed_sets_are_there_from_the_start():
    fresh = Metrics()
    fresh.of("mugs")
    assert sample(fresh, "packshot_requests_refused_total", model="mugs", reason="shed") == 0
    assert sample(fresh, "packshot_cache_lookups_total", result="hit") == 0
    assert sample(fresh, "packshot_requests_refused_total", model="other", reason="shed") is None


def test_seconds_are_counted_from_half_a_millisecond_to_ten_seconds():
    rows = Metrics().declared.rows
    timed = [row for row in rows if row.kind == "histogram" and unit_of(row.name) == "seconds"]
    assert timed
    assert {(row.buckets[0], row.buckets[-1]) for row in timed} == {(0.0005, 10.0)}


def test_reasons_of_reloads_are_those_of_the_reloader():
    assert {*REASONS.values(), "failed"} == set(metrics.REJECTIONS)
    assert {*metrics.REJECTIONS, "swapped"} == set(metrics.RELOADS)


def test_a_census_has_the_series_of_what_there_is_and_no_others():
    counted, there = Metrics(), {("mugs", "damaged"): 2}
    assert sample(counted, "packshot_rejected_versions", model="mugs", reason="damaged") is None
    counted.rejected_versions.set_function(lambda: there)
    assert sample(counted, "packshot_rejected_versions", model="mugs", reason="damaged") == 2
    there.clear()
    assert sample(counted, "packshot_rejected_versions", model="mugs", reason="damaged") is None


def test_rpcs_are_counted_under_the_ecosystems_names():
    counted = Metrics()
    rpc = {"grpc_type": "unary", "grpc_service": "s", "grpc_method": "M"}
    counted.rpc_started("s", "M")
    assert sample(counted, "grpc_server_started_total", **rpc) == 1
    counted.rpc_handled("s", "M", "OK", 0.25)
    assert sample(counted, "grpc_server_handled_total", **rpc, grpc_code="OK") == 1
    assert sample(counted, "grpc_server_handling_seconds_sum", **rpc) == 0.25


@pytest.fixture
def complaints():
    """A function from the text of /metrics to what promtool has to say about it."""
    if shutil.which("promtool") is None:
        assert not os.environ.get("CI"), "CI must have promtool: see .ci/run"
        pytest.skip("promtool is not installed")

    def check(text):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
        assert done.returncode in (0, 3), done.stderr
        return (done.stdout + done.stderr).decode()

    return check


def test_promtool_has_no_complaint_about_a_real_server(server, complaints):
    with Client(server.target, timeout_seconds=TIMEOUT) as client:
        client.classify([jpeg(PURE["red"]), b"text"])
    text = urllib.request.urlopen(server.metrics_url, timeout=TIMEOUT).read()
    assert complaints(text) == ""
    families = {family.name for family in text_string_to_metric_families(text.decode())}
    assert {"packshot_ready", "grpc_server_handling_seconds"} <= families


def test_promtool_has_no_complaint_about_any_metric(complaints):
    counted = Metrics()
    for metric in vars(counted).values():  # it looks at metrics that have a series
        if isinstance(metric, (Counter, Gauge, Histogram)) and metric._labelnames:
            metric.labels(*("some" for _ in metric._labelnames))
    counted.rejected_versions.set_function(lambda: {("some", "some"): 1})
    assert complaints(generate_latest(counted.registry)) == ""
