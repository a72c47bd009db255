"""Answers that are not sure enough, by the bundle's threshold or the request's."""

import csv
import json
import subprocess
import sys

import grpc
import pytest
from processes import ROOT, TIMEOUT, serving
from tiny import PURE, jpeg, tiny_bundle

from packshot.errors import InvalidInput
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

SURE = jpeg(PURE["red"])
UNSURE = jpeg((120, 115, 110))  # three labels at about a third each
ABSTAINED = 'packshot_images_abstained_total{model="colours"}'


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    store = tmp_path_factory.mktemp("models")
    tiny_bundle(store, min_confidence=0.6)
    with serving("--models", store) as running:
        yield running


def test_the_models_own_threshold_holds_and_is_counted(client, server):
    before = server.metric(ABSTAINED)
    sure, unsure = client.classify([SURE, UNSURE])
    assert (sure.abstained, unsure.abstained) == (False, True)
    assert unsure.predictions, "what it would have said is told all the same"
    assert server.metric(ABSTAINED) - before == 1
    assert client.model().min_confidence == 0.6


def test_a_request_has_the_last_word(client):
    assert not client.classify(UNSURE, min_confidence=0)[0].abstained
    assert not client.classify(UNSURE, min_confidence=0.2)[0].abstained
    assert client.classify(SURE, min_confidence=1)[0].abstained


def test_in_a_stream_too(client):
    items = [("sure", SURE), ("unsure", UNSURE)]

    def abstained(**wanted: float) -> set[str]:
        return {r.name for r in client.classify_stream(items, **wanted) if r.abstained}

    assert abstained() == {"unsure"}
    assert abstained(min_confidence=0) == set()
    assert abstained(min_confidence=1) == {"sure", "unsure"}


@pytest.mark.parametrize("value", [-0.1, 1.5, float("nan")])
def test_a_threshold_out_of_range_is_refused_by_its_value(client, server, value):
    with pytest.raises(InvalidInput, match=f"min_confidence is {value}"):
        client.classify(SURE, min_confidence=value)
    request = pb.ClassifyRequest(images=[pb.Image(encoded=SURE)], min_confidence=value)
    with grpc.insecure_channel(server.target) as channel:
        with pytest.raises(grpc.RpcError) as caught:
            ClassifierStub(channel).Classify(request, timeout=TIMEOUT)
        asked = pb.ClassifyStreamRequest(id="a", image=request.images[0], min_confidence=value)
        (answer,) = ClassifierStub(channel).ClassifyStream(iter([asked]), timeout=TIMEOUT)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert f"min_confidence is {value}; it must be from 0 to 1" in caught.value.details()
    assert answer.result.error.reason == "invalid"


@pytest.fixture
def files(tmp_path):
    (tmp_path / "sure.jpg").write_bytes(SURE)
    (tmp_path / "unsure.jpg").write_bytes(UNSURE)
    return tmp_path


def classify(server, *arguments: object) -> list[str]:
    command = [sys.executable, "-m", "packshot.cli", "classify", "--target", server.target]
    done = subprocess.run(
        [*command, *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("order", [[], ["--bulk"]])
def test_the_command_shows_it_in_every_format(server, files, order):
    sure, unsure = sorted(classify(server, *order, files))
    assert unsure.startswith(f"{files}/unsure.jpg  ABSTAINED  red ")
    assert "ABSTAINED" not in sure
    records = [json.loads(line) for line in classify(server, *order, "--json", files)]
    assert {r["name"] for r in records if r["abstained"]} == {f"{files}/unsure.jpg"}
    rows = list(csv.DictReader(classify(server, *order, "--csv", "--top-k", 1, files)))
    assert {row["name"]: row["abstained"] for row in rows} == {
        f"{files}/sure.jpg": "false", f"{files}/unsure.jpg": "true",
    }  # fmt: skip
    none = classify(server, *order, "--min-confidence", 0, files)
    assert not any("ABSTAINED" in line for line in none)


def test_bulk_takes_a_file_twice_and_reports_bad_ones(server, files):
    (files / "text.jpg").write_text("text")
    command = [sys.executable, "-m", "packshot.cli", "classify", "--bulk", "--target"]
    done = subprocess.run(
        [*command, server.target, files, files / "sure.jpg"],
        cwd=ROOT, capture_output=True, text=True, timeout=TIMEOUT, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 1
    assert sum(line.startswith(f"{files}/sure.jpg  red ") for line in lines) == 2
    assert sum("ERROR not_an_image" in line for line in lines) == 1
