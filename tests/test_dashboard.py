"""The dashboard: its file is the code's, and a real Prometheus has data for every panel.

Grafana itself is not run: what is held here is that its queries are right, and that they show
something of servers in ordinary and in less ordinary use.
"""

import json
import math
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import grpc
import pytest
import yaml
from certificates import Authority
from PIL import Image
from processes import FAKE_SERVING, ROOT, TIMEOUT, Server, serving, until
from scraped import Prometheus, need, scraping, unknown
from test_rules import FOLDER, RECORDED
from tiny import PURE, colour_network, encoded, jpeg, tiny_bundle

from deploy.grafana.dashboard import page
from packshot import Client, Tls
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub
from serving.scheduler import FAILURES_TO_REPLACE

DASHBOARD = json.loads(page())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
VARIABLES = {one["name"]: one for one in DASHBOARD["templating"]["list"]}
RED = jpeg(PURE["red"], (64, 48))
NOT_OF_LAST_WEEK = [name for name in RECORDED if not name.endswith("1w")]
# Panels that rightly show 0 here. In all others something is above it.
QUIET = {
    "Failed", "Error budget burn", "Dropped from the queue", "Images in progress", "Log",
    "Failed batches and takeovers", "Garbage collection", "Certificate reloads",
}  # fmt: skip
every_panel = pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel["title"])
Data = list[tuple[dict[str, str], float]]


def filled(expr: str) -> str:
    """With All chosen in every variable, and a range as short as this test."""
    return re.sub(r"\$(namespace|job|instance|model)\b", ".*", expr).replace(
        "$__rate_interval", "20s"
    )


def queries(panel: dict) -> list[str]:
    return [filled(target["expr"]) for target in panel["targets"]]


# What can be told from the file


def test_the_file_is_what_the_code_writes():
    written = (ROOT / "deploy" / "grafana" / "packshot.json").read_text()
    command = "python -m deploy.grafana.dashboard > deploy/grafana/packshot.json"
    assert written == page(), f"run: {command}"


def test_panels_have_their_own_ids_and_places():
    ids = Counter(panel["id"] for panel in DASHBOARD["panels"])
    assert max(ids.values()) == 1
    taken = Counter(
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    )
    assert max(taken.values()) == 1
    assert max(x for x, _ in taken) < 24


def test_variables_choose_source_and_servers():
    assert list(VARIABLES) == ["datasource", "namespace", "job", "instance", "model"]
    for name, variable in list(VARIABLES.items())[1:]:
        assert variable["datasource"]["uid"] == "${datasource}", name
        asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
        assert asked[2] == name
        assert unknown(asked[1]) == []


@every_panel
def test_a_panel_says_what_it_shows(panel):
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert len(panel["targets"]) == len({target["refId"] for target in panel["targets"]}) > 0


@every_panel
def test_a_panel_asks_the_chosen_source_for_what_servers_give(panel):
    for target in [panel, *panel["targets"]]:
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    for target in panel["targets"]:
        assert unknown(filled(target["expr"]), RECORDED) == []
        labels = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert labels <= set(re.findall(r"\w+", target["expr"])) | {"instance"}


def test_every_selector_goes_by_the_variables():
    for panel in PANELS:
        for target in panel["targets"]:
            for selector in re.findall(r"{(.*?)}", target["expr"]):
                assert 'job=~"$job"' in selector, panel["title"]


# With real servers


class Watched(NamedTuple):
    """A Prometheus, and what it sees: a server in trouble, and one behind TLS."""

    prometheus: Prometheus
    traffic: Callable[[], None]


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    need("prometheus")
    folder = tmp_path_factory.mktemp("watched")
    with ExitStack() as stack:
        troubled = stack.enter_context(in_trouble(folder / "troubled"))
        secured, tls = stack.enter_context(behind_tls(folder / "secured"))
        rules = hurried(folder / "rules.yaml")
        targets = [one.metrics_url.split("/")[2] for one in (troubled, secured)]
        prometheus = stack.enter_context(scraping(folder, targets, rules))
        # Before the first scrape a counter has no increase.
        until(lambda: len(prometheus.query("packshot_ready == 1")) == 2)
        provoke(troubled, folder / "troubled")
        yield Watched(prometheus, lambda: traffic(troubled, secured, tls))


@contextmanager
def in_trouble(folder: Path) -> Iterator[Server]:
    """Its engine int8 does as files in the folder say, and there is little room."""
    tiny_bundle(folder / "models", int8=colour_network(), min_confidence=0.9)
    room = ("--max-queued-images", 16, "--max-images-per-request", 8, "--cache-bytes", 1 << 20)
    control = ("--troubled", "int8", "--control", folder, "--reload-seconds", 0.1)
    options = ("--models", folder / "models", "--engines", "int8,fp32", *control, *room)
    with serving(*options, program=FAKE_SERVING) as server:
        yield server


@contextmanager
def behind_tls(folder: Path) -> Iterator[tuple[Server, Tls]]:
    tiny_bundle(folder / "models", "shoes")
    authority = Authority()
    cert, key, ca = folder / "tls.pem", folder / "tls.key", folder / "ca.pem"
    authority.issue(cert, key)
    authority.pem(ca)
    options = ("--tls-cert", cert, "--tls-key", key, "--tls-client-ca", ca)
    authority.issue(folder / "me.pem", folder / "me.key", name="client")
    with serving("--models", folder / "models", *options) as server:
        yield server, Tls(ca=ca, cert=folder / "me.pem", key=folder / "me.key")


def hurried(file: Path) -> Path:
    """The rules, all of them evaluated as often as this Prometheus does."""
    rules = yaml.safe_load((FOLDER / "rules.yaml").read_text())
    for group in rules["groups"]:
        group.pop("interval", None)
    file.write_text(yaml.safe_dump(rules))
    return file


def provoke(server: Server, folder: Path) -> None:
    """The engine fails until another takes over; then a version is released that is not there."""
    (folder / "fail").touch()
    with grpc.insecure_channel(server.target) as channel:
        stub = ClassifierStub(channel)
        # No more than that: ten failures would cost the error budget its alert.
        for _ in range(FAILURES_TO_REPLACE):
            request = pb.ClassifyRequest(images=[pb.Image(encoded=noise())])
            assert stub.Classify.future(request).code() == grpc.StatusCode.INTERNAL
    until(lambda: server.metric("packshot_engine_takeovers_total"))
    (folder / "models" / "colours" / "released").write_text("9\n")
    until(lambda: server.metric('packshot_rejected_versions{model="colours",reason="not_found"}'))


def traffic(troubled: Server, secured: Server, tls: Tls) -> None:
    """Something of everything."""
    pictures = [noise() for _ in range(4)]
    with Client(troubled.target, timeout_seconds=TIMEOUT) as client:
        for _ in range(2):  # the second time from the cache
            client.classify([*pictures, b"text", RED])
        client.embed(pictures)
        assert all(one.error is None for one in client.classify_stream(enumerated(pictures)))
    with Client(secured.target, timeout_seconds=TIMEOUT, tls=tls) as client:
        client.classify(noise())  # alone, and without errors: its prediction can be compared
    with Client(secured.target, timeout_seconds=TIMEOUT, tls=tls, bulk=True) as client:
        client.classify(pictures)
    crowd(troubled)


def crowd(server: Server) -> None:
    """More at once than there is room for."""
    request = pb.ClassifyRequest(images=[pb.Image(encoded=noise()) for _ in range(8)])
    with grpc.insecure_channel(server.target) as channel:
        calls = [ClassifierStub(channel).Classify.future(request) for _ in range(12)]
        assert {call.code().name for call in calls} <= {"OK", "RESOURCE_EXHAUSTED"}


def noise() -> bytes:
    """A picture that no cache has seen, of which the network is not sure."""
    return encoded(Image.frombytes("RGB", (32, 32), os.urandom(32 * 32 * 3)), "PNG")


def enumerated(pictures: list[bytes]) -> list[tuple[str, bytes]]:
    return [(str(number), picture) for number, picture in enumerate(pictures)]


@pytest.fixture(scope="module")
def seen(watched: Watched) -> dict[str, Data]:
    """What each query gave, while requests of all kinds came, once it gave something."""
    found: dict[str, Data] = {}
    asked = [expr for panel in PANELS for expr in queries(panel)]
    asked += NOT_OF_LAST_WEEK
    quiet = {expr for panel in PANELS if panel["title"] in QUIET for expr in queries(panel)}
    quiet |= {name for name in RECORDED if "failures" in name or "expired" in name}
    end = time.monotonic() + TIMEOUT
    while len(found) < len(set(asked)) and time.monotonic() < end:
        watched.traffic()
        for expr in set(asked) - found.keys():
            data = [one for one in watched.prometheus.query(expr) if not math.isnan(one[1])]
            if any(value > 0 or expr in quiet for _, value in data):
                found[expr] = data
    return found


@every_panel
def test_a_panel_has_data(seen, panel):
    for expr in queries(panel):
        assert expr in seen, f"no data: {expr}"


@pytest.mark.parametrize("name", NOT_OF_LAST_WEEK)
def test_a_recording_rule_has_data(seen, name):
    assert name in seen
    for labels, _ in seen[name]:
        assert labels["job"] == "packshot"


def test_numbers_are_what_happened(watched, seen):
    """Those that are known beforehand, as soon as they have been scraped."""

    def shown(title: str, label: str, number: int = 0) -> dict[str, float]:
        (panel,) = (one for one in PANELS if one["title"] == title)
        data = watched.prometheus.query(queries(panel)[number])
        return {labels.get(label, ""): value for labels, value in data}

    until(lambda: shown("Engine in use", "engine") == {"fp32": 1})
    assert shown("Engine in use", "model") == {"colours": 1, "shoes": 1}
    assert shown("Versions that stay out", "reason") == {"not_found": 1}
    assert shown("Ready servers", "") == {"": 2}
    assert shown("Failed batches and takeovers", "model", 1) == {"colours": 1, "shoes": 0}
    assert set(shown("Alive", "instance").values()) == {1}
    left = shown("Certificates are valid for", "use")
    assert 0 < left["server"] / 86400 < 1 < left["client_ca"] / 86400 < 9


def test_the_alerts_that_fire_are_those_of_what_happened(watched, seen):
    def alerts(state: str) -> set[str]:
        active = watched.prometheus.query(f'ALERTS{{alertstate="{state}"}}')
        return {labels["alertname"] for labels, _ in active}

    until(lambda: alerts("firing"))
    until(lambda: "PackshotReloadFailed" in alerts("pending"))  # for five minutes
    assert alerts("firing") == {"PackshotEngineFailed"}
