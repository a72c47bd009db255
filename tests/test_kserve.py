"""deploy/kserve: what KServe is told is what the server does."""

import shutil

import grpc
import kubernetes_validate
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kustomize import (
    CLOSED,
    DEPLOY,
    NEWEST,
    OLDEST,
    check_image,
    check_resources,
    check_schema,
    rendered,
    shown,
)
from processes import TIMEOUT, serving
from tiny import PURE, jpeg, tiny_bundle

import packshot
from packshot.bundle import FORMAT
from packshot.oip import open_inference_pb2 as oip
from packshot.oip.open_inference_pb2_grpc import GRPCInferenceServiceStub
from serving.app import SERVICES
from serving.command_line import parse_settings
from serving.settings import Settings

MOUNTED = "/mnt/models"


@pytest.fixture(scope="module")
def manifests():
    return rendered(DEPLOY / "kserve")


@pytest.fixture
def runtime(manifests):
    return manifests.the("ServingRuntime")["spec"]


@pytest.fixture
def container(runtime):
    [only] = runtime["containers"]
    return only


@pytest.fixture
def model(manifests):
    return manifests.the("InferenceService", "products")["spec"]["predictor"]["model"]


def arguments(container, *, name: str, models: object) -> list[str]:
    """As KServe hands them over, with another folder in the place of the one it mounts."""
    named = [argument.replace("{{.Name}}", name) for argument in container["args"]]
    return [argument.replace(MOUNTED, str(models)) for argument in named]


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_fields_are_known(manifests, container, version):
    for one in manifests:
        check_schema(one, version)
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one"}}
    kubernetes_validate.validate({**pod, "spec": {"containers": [container]}}, version, strict=True)


def test_the_service_asks_for_what_the_runtime_offers(manifests, runtime, model):
    assert model["runtime"] == manifests.the("ServingRuntime")["metadata"]["name"]
    [offered] = runtime["supportedModelFormats"]
    assert model["modelFormat"].items() <= offered.items()
    assert offered["version"] == str(FORMAT)
    assert model["protocolVersion"] in runtime["protocolVersions"] == ["grpc-v2"]
    assert {one["metadata"]["namespace"] for one in manifests} == {"packshot-kserve"}


def test_one_version_is_fetched(model):
    # KServe takes every object that begins so: "1" would be the beginning of 10 too.
    assert model["storageUri"].endswith("/1/")


def test_the_overlay_that_the_readme_shows_names_registry_and_bucket(tmp_path):
    [manifests] = shown(DEPLOY / "kserve" / "README.md", tmp_path)
    [container] = manifests.the("ServingRuntime")["spec"]["containers"]
    image = f"registry.example.com/shop/packshot-serve-cpu:{packshot.__version__}"
    assert container["image"] == image
    model = manifests.the("InferenceService", "products")["spec"]["predictor"]["model"]
    assert model["storageUri"] == "s3://shop-models/products/1/"


def test_the_server_accepts_its_arguments(container):
    settings = parse_settings(arguments(container, name="products", models=MOUNTED))
    assert settings.model == ("products",)
    assert str(settings.models) == MOUNTED


def test_the_one_port_is_that_of_grpc(container):
    [port] = container["ports"]
    # Knative's name for HTTP/2 without TLS.
    assert port == {
        "name": "h2c", "containerPort": Settings.model_fields["port"].default, "protocol": "TCP",
    }  # fmt: skip
    probe = container["readinessProbe"]["grpc"]
    assert probe["port"] == port["containerPort"]
    assert probe["service"] in SERVICES
    alive = container["livenessProbe"]["grpc"]
    assert alive == {"port": port["containerPort"], "service": ""}


def test_metrics_are_looked_for_where_they_are(runtime):
    port = runtime["annotations"]["prometheus.kserve.io/port"]
    assert port == str(Settings.model_fields["http_port"].default)


def test_the_container_is_closed(container):
    context = container["securityContext"]
    assert context.items() >= CLOSED.items()
    assert (context["runAsNonRoot"], context["runAsUser"]) == (True, 10001)
    assert container["name"] == "kserve-container"
    check_image(container["image"])
    check_resources(container)


def test_the_real_server_serves_what_the_storage_initializer_leaves(container, tmp_path):
    version = tiny_bundle(tmp_path / "bucket", "products")
    mounted = tmp_path / "mnt" / "models"
    shutil.copytree(version, mounted)  # what is below storageUri, without its folders
    options = arguments(container, name="products", models=mounted)
    with serving(*options) as server, grpc.insecure_channel(server.target) as channel:
        probe = container["readinessProbe"]["grpc"]
        request = health_pb2.HealthCheckRequest(service=probe["service"])
        reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
        assert reply.status == health_pb2.HealthCheckResponse.SERVING
        stub = GRPCInferenceServiceStub(channel)
        assert stub.ModelReady(oip.ModelReadyRequest(name="products"), timeout=TIMEOUT).ready
        asked = oip.ModelInferRequest(model_name="products")
        asked.inputs.add(name="images", datatype="BYTES", shape=[1]).contents.bytes_contents.append(
            jpeg(PURE["green"])
        )
        answer = stub.ModelInfer(asked, timeout=TIMEOUT)
        assert (answer.model_name, answer.model_version) == ("products", "1")
