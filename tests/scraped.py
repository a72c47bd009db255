"""A real Prometheus for tests, and what its expressions are made of."""

import json
import os
import shutil
import socket
import subprocess
import urllib.parse
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import promql_parser as promql
import pytest
import yaml
from processes import page, until

from serving.declared import OPEN
from serving.metrics import Metrics

# Given by Prometheus itself, or by who scrapes: no server declares them.
OUTSIDE = {"up", "ALERTS"}
TARGET_LABELS = {"namespace", "job", "instance"}


def need(tool: str) -> None:
    """Skips the test without it; CI must have it."""
    if shutil.which(tool) is None:
        assert not os.environ.get("CI"), f"CI must have {tool}: see .ci/run"
        pytest.skip(f"{tool} is not installed")


def parts(expr: str) -> list[promql.Expr]:
    """The expression and all that it is made of. Raises ValueError for what is no PromQL."""
    found: list[promql.Expr] = []
    promql.walk(promql.parse(expr), found.append)
    return found


def unknown(expr: str, recorded: Container[str] = ()) -> list[str]:
    """Names, labels and values in an expression that no server gives; `recorded`: by rules."""
    series, wrong = labels_of_series(), []
    for one in parts(expr):
        if not isinstance(one, promql.VectorSelector) or one.name in OUTSIDE:
            continue
        if one.name in recorded:
            labels = dict.fromkeys(TARGET_LABELS, OPEN)
        elif one.name in series:
            labels = series[one.name] | dict.fromkeys(TARGET_LABELS, OPEN)
        else:
            wrong.append(one.name)
            continue
        for matcher in one.matchers.matchers:
            values = labels.get(matcher.name)
            if values is None:
                wrong.append(f"{one.name}: {matcher.name}")
            elif values and not {*matcher.value.split("|")} <= {*values}:
                wrong.append(f"{one.name}: {matcher}")
    return wrong


def labels_of_series() -> dict[str, dict[str, Sequence[str]]]:
    """Name of every series that a server exposes, its labels, and their values where closed."""
    metrics = Metrics()
    series: dict[str, dict[str, Sequence[str]]] = {}
    for row in metrics.declared.rows:
        if row.kind == "histogram":
            bounds = [*map(str, row.buckets), "+Inf"]
            series |= {f"{row.name}_{end}": dict(row.labels) for end in ("count", "sum")}
            series[f"{row.name}_bucket"] = {**row.labels, "le": bounds}
        else:
            series[row.name] = dict(row.labels)
    for family in metrics.registry.collect():
        if family.name.startswith(("process_", "python_")):
            for one in family.samples:
                series[one.name] = dict.fromkeys(one.labels, OPEN)
    return series


class Prometheus:
    """One that runs, with its HTTP API."""

    def __init__(self, url: str) -> None:
        self._url = url

    def query(self, expr: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each series of an instant query."""
        asked = urllib.parse.urlencode({"query": expr})
        status, text = page(f"{self._url}/api/v1/query?{asked}")
        assert status == 200, f"{expr}: {text}"
        result = json.loads(text)["data"]["result"]
        return [(one["metric"], float(one["value"][1])) for one in result]

    def is_ready(self) -> bool:
        try:
            return page(f"{self._url}/-/ready")[0] == 200
        except OSError:
            return False


@contextmanager
def scraping(folder: Path, targets: list[str], rules: Path) -> Iterator[Prometheus]:
    """Scrapes them twice a second, and evaluates the rules of that file as often."""
    config = {
        "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
        "rule_files": [str(rules)],
        "scrape_configs": [{"job_name": "packshot", "static_configs": [{"targets": targets}]}],
    }
    file = folder / "prometheus.yaml"
    file.write_text(yaml.safe_dump(config))
    address = f"127.0.0.1:{_free_port()}"
    with (folder / "prometheus.log").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={file}", f"--storage.tsdb.path={folder / 'data'}",
             f"--web.listen-address={address}"],
            stdout=log, stderr=log,
        )  # fmt: skip
        try:
            prometheus = Prometheus(f"http://{address}")
            until(lambda: process.poll() is not None or prometheus.is_ready())
            assert process.poll() is None, (folder / "prometheus.log").read_text()
            yield prometheus
        finally:
            process.terminate()
            process.wait(60)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])
