"""Classify over a real socket: right answers to good images, reasons for bad ones."""

import grpc
import numpy as np
import pytest
from PIL import Image
from processes import TIMEOUT, Server
from tiny import PURE, encoded, jpeg, reference

from packshot import Client
from packshot.errors import InvalidInput, NotFound
from packshot.image import ImageSpec, load_pixels
from packshot.v1 import classifier_pb2 as pb
from packshot.v1.classifier_pb2_grpc import ClassifierStub

RED = jpeg(PURE["red"])


@pytest.fixture
def stub(server):
    with grpc.insecure_channel(server.target) as channel:
        yield ClassifierStub(channel)


def status(call, *arguments) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments, timeout=TIMEOUT)
    return caught.value


def test_answers_with_the_right_labels(client):
    results = client.classify([jpeg(colour) for colour in PURE.values()])
    assert [result.label for result in results] == ["red", "green", "blue"]
    assert {(r.model, r.version, r.engine) for r in results} == {("colours", 1, "fp32")}
    assert all(sum(p.probability for p in r.predictions) == pytest.approx(1) for r in results)


def test_logits_are_those_of_the_network_on_packshots_pixels(client):
    rng = np.random.default_rng(0)
    photos = [
        encoded(Image.fromarray(rng.integers(0, 255, (300, 400, 3), np.uint8)), "JPEG")
        for _ in range(20)
    ]
    expected = reference(np.stack([load_pixels(photo, ImageSpec()) for photo in photos]))
    results = client.classify(photos, include_logits=True)
    assert np.allclose([result.logits for result in results], expected, atol=1e-3)


def test_raw_pixels_skip_the_decoder(client):
    pixels = load_pixels(RED, ImageSpec())
    by_file, by_pixels = client.classify([RED, pixels], include_logits=True)
    assert by_pixels.logits == by_file.logits


def test_bad_images_get_errors_of_their_own_while_the_others_are_answered(client, tmp_path):
    text = tmp_path / "notes.txt"
    text.write_text("not a picture")
    good = RED
    results = client.classify(
        [
            good, b"", text, good[: len(good) // 2], encoded(Image.new("1", (3000, 1000)), "PNG"),
            np.zeros((10, 10, 3), np.uint8), tmp_path / "missing.jpg", good,
        ]
    )  # fmt: skip
    assert [result.reason for result in results] == [
        None, "empty", "not_an_image", "damaged", "too_many_pixels", "wrong_size", "unreadable",
        None,
    ]  # fmt: skip
    assert results[0].label == results[-1].label == "red"
    assert "3000x1000 pixels; the limit is 2000000" in results[4].error
    with pytest.raises(InvalidInput, match="not an image"):
        _ = results[2].label


def test_bad_requests_are_refused_with_the_reason(stub):
    image = pb.Image(encoded=RED)
    empty = status(stub.Classify, pb.ClassifyRequest())
    assert (empty.code(), empty.details()) == (
        grpc.StatusCode.INVALID_ARGUMENT, "the request has no image; send 1 or more",
    )  # fmt: skip
    many = status(stub.Classify, pb.ClassifyRequest(images=[image] * 33))
    assert many.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "33 images; at most 32" in many.details()
    negative = status(stub.Classify, pb.ClassifyRequest(images=[image], top_k=-1))
    assert "top_k is -1" in negative.details()
    unknown = status(stub.Classify, pb.ClassifyRequest(images=[image], model="shoes"))
    assert unknown.code() is grpc.StatusCode.NOT_FOUND
    assert "'shoes'" in unknown.details()


def test_an_image_without_content_is_an_empty_image(stub):
    reply = stub.Classify(pb.ClassifyRequest(images=[pb.Image()]), timeout=TIMEOUT)
    assert reply.results[0].error.reason == "empty"


def test_top_k(client):
    assert len(client.classify(RED, top_k=2)[0].predictions) == 2
    assert len(client.classify(RED, top_k=9)[0].predictions) == 3


def test_unknown_model_through_the_client(server: Server):
    with Client(server.target, model="shoes") as client, pytest.raises(NotFound, match="shoes"):
        client.classify(RED)
