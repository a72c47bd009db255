"""What a server tells of itself: its model, metrics, health and API."""

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from processes import serving
from tiny import PURE, colour_network, jpeg, tiny_bundle

from packshot import Client


def test_the_model_says_which_engine_answers_and_why_not_a_better_one(client, server):
    model = client.model()
    assert (model.model, model.version, model.engine) == ("colours", 1, "fp32")
    assert model.labels == ("red", "green", "blue")
    assert model.input_shape == (224, 224, 3)
    assert model.refused.keys() == {"int8"}
    assert model.refused["int8"].startswith("answers_differ: logits of the golden samples differ")
    assert "engine int8 refused" in server.log
    assert "engine fp32, on" in server.log
    refusals = (
        'packshot_engine_refusals_total{engine="int8",model="colours",reason="answers_differ"}'
    )
    assert server.metric(refusals) == 1
    in_use = 'packshot_engine_in_use{engine="fp32",model="colours",version="1"}'
    assert server.metric(in_use) == 1


def test_an_engine_that_opens_but_cannot_run_is_refused(tmp_path):
    tiny_bundle(tmp_path, int8=colour_network(embedding="something_else"))
    with serving("--models", tmp_path) as server, Client(server.target) as client:
        model = client.model()
        assert model.engine == "fp32"
        assert model.refused["int8"].startswith("load_failed: it cannot run the golden samples")
        assert str(tmp_path) not in model.refused["int8"]


def test_metrics_count_what_was_done(client, server):
    def counts() -> tuple[float, ...]:
        return tuple(
            server.metric(sample)
            for sample in (
                'packshot_images_total{model="colours",result="ok"}',
                'packshot_images_total{model="colours",result="not_an_image"}',
                'packshot_stage_seconds_count{model="colours",stage="decode"}',
                'packshot_stage_seconds_count{model="colours",stage="total"}',
                "packshot_batch_images_sum",
                'grpc_server_handled_total{grpc_code="OK",grpc_method="Classify",'
                'grpc_service="packshot.v1.Classifier",grpc_type="unary"}',
            )
        )

    before = counts()
    image = jpeg(PURE["red"])
    client.classify([image, image, b"text"])
    gained = tuple(now - then for now, then in zip(counts(), before, strict=True))
    assert gained == (2, 1, 2, 1, 2, 1)
    assert server.metric("packshot_ready") == 1
    assert server.metric("packshot_images_in_progress") == 0


def test_health(server):
    serving_status = health_pb2.HealthCheckResponse.SERVING
    assert server.health() == serving_status
    assert server.health("packshot.v1.Classifier") == serving_status


def test_reflection_tells_the_api(server):
    with grpc.insecure_channel(server.target) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        assert set(database.get_services()) == {
            "packshot.v1.Classifier", "inference.GRPCInferenceService", "grpc.health.v1.Health",
            "grpc.reflection.v1alpha.ServerReflection",
        }  # fmt: skip
        service = DescriptorPool(database).FindServiceByName("packshot.v1.Classifier")
        assert [method.name for method in service.methods] == [
            "Classify", "ClassifyStream", "Embed", "GetModel",
        ]  # fmt: skip
