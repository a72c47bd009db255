"""deploy/Dockerfile, built for real; its server runs hardened, is asked, limited and stopped."""

import copy
import itertools
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from containers import HARDENED, Container, Podman, base_image, missing_tools
from kustomize import KUBERNETES, rendered
from processes import ROOT, TIMEOUT, page
from tiny import PURE, jpeg, tiny_bundle

from packshot import Client, __version__

pytestmark = pytest.mark.image


@pytest.fixture(scope="module")
def podman(tmp_path_factory) -> Iterator[Podman]:
    if missing := missing_tools():
        assert not os.environ.get("CI"), f"CI must have {missing}: see .ci/run"
        pytest.skip(f"{', '.join(missing)} not installed")
    podman = Podman(tmp_path_factory.mktemp("podman"))
    base_image(podman)
    yield podman
    podman("rmi", "--all", "--force")  # its files are not to be removed one by one


@pytest.fixture(scope="module")
def image(podman) -> str:
    return podman.build("serve-cpu", __version__)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> Path:
    """A store that user 10001 may read."""
    models = tmp_path_factory.mktemp("models")
    tiny_bundle(models)
    (models / "lost+found").mkdir(mode=0o700)  # as in the root of a volume
    for folder in (models, *models.parents):
        if folder.name.startswith("pytest-") or folder == models:
            folder.chmod(0o755)
    return models


class Ports:
    """Two free ones, for the network of this machine."""

    def __init__(self) -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as one,
            socket.create_server(("127.0.0.1", 0)) as other,
        ):
            self.grpc, self.http = (taken.getsockname()[1] for taken in (one, other))
        self.target = f"127.0.0.1:{self.grpc}"
        self.options = (
            "--network", "host", "--env", "PACKSHOT_HOST=127.0.0.1",
            "--env", f"PACKSHOT_PORT={self.grpc}", "--env", f"PACKSHOT_HTTP_PORT={self.http}",
        )  # fmt: skip


@pytest.fixture
def ports() -> Ports:
    return Ports()


@pytest.fixture
def container(podman, image, models, ports) -> Iterator[Container]:
    limits = ("--memory", "400m", "--pids-limit", "128", "--cpus", "1")
    with podman.running(
        image, *HARDENED, *limits, *ports.options, "--volume", f"{models}:/models:ro"
    ) as running:
        running.wait_until_ready("--target", ports.target)
        yield running


def test_what_is_in_the_image(podman, image):
    inspected = podman.inspected(image)
    assert inspected["Size"] < 540e6
    config = inspected["Config"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.version"] == __version__
    assert config["Labels"]["org.opencontainers.image.licenses"] == "Apache-2.0"
    installed = podman("run", "--rm", "--entrypoint", "python", image, "-c", MODULES).stdout
    assert installed == "onnxruntime opentelemetry openvino serving\n"


MODULES = """
from importlib.util import find_spec
wanted = ["onnxruntime", "opentelemetry", "openvino", "serving"]
unwanted = ["exporters", "hatchling", "onnx", "pip", "setuptools", "torch", "trainer"]
print(*filter(find_spec, wanted + unwanted))
"""


def test_it_classifies_with_no_right_at_all(container, ports):
    with Client(ports.target, timeout_seconds=TIMEOUT) as client:
        assert [one.label for one in client.classify(list(map(jpeg, PURE.values())))] == list(PURE)
    assert page(f"http://127.0.0.1:{ports.http}/readyz")[0] == 200
    assert container.execute("id", "-u").stdout == "10001\n"
    for folder in ("/", "/app", "/models/colours", "/opt/packshot"):
        assert "Read-only file system" in container.execute("touch", f"{folder}/x").stderr
    status = container.execute("cat", "/proc/1/status").stdout.split()
    kernel = dict(itertools.pairwise(status))
    assert int(kernel["CapEff:"], 16) == int(kernel["CapBnd:"], 16) == 0
    assert (kernel["NoNewPrivs:"], kernel["Seccomp:"]) == ("1", "2")


def test_it_counts_the_cores_of_its_quota(container):
    cores = "from packshot.cores import available_cores as cores; print(cores())"
    assert container.execute("python", "-c", cores).stdout == "1\n"


def test_the_health_check_of_the_image(podman, image, container, ports):
    check = podman.inspected(image)["Healthcheck"]["Test"]
    assert check == ["CMD", "packshot", "probe", "--timeout", "4"]
    assert container.execute(*check[1:], "--target", ports.target).returncode == 0
    nobody = container.execute(*check[1:], "--target", "127.0.0.1:1")
    assert nobody.returncode == 1


def test_it_is_stopped_and_has_drained(container):
    assert container.stop() == 0
    assert '"event":"drained"' in container.log


def test_memory_is_limited(podman, image, container):
    hungry = "x = bytearray(10**9)"
    with podman.running(
        image, "--memory", "128m", "--entrypoint", "python", arguments=("-c", hungry)
    ) as it:
        assert it.exit_status == 137


def test_check_as_an_init_container(podman, image, models, tmp_path):
    mounted = ("--volume", f"{models}:/models:ro")
    checked = podman("run", "--rm", *HARDENED, *mounted, image, "--check")
    assert "colours" in checked.stdout
    verified = podman(
        "run", "--rm", *HARDENED, *mounted, "--entrypoint", "packshot", image,
        "models", "verify", "colours", "--models", "/models",
    )  # fmt: skip
    assert "colours" in verified.stdout


def test_stores_that_cannot_be_served(podman, image, tmp_path):
    for models, why in (
        (tmp_path / "empty", "no model in /models"),
        (tmp_path / "locked", "/models cannot be read by user 10001"),
    ):
        models.mkdir()
        models.chmod(0o700 if models.name == "locked" else 0o755)
        mounted = ("--volume", f"{models}:/models:ro", "--no-healthcheck")
        refused = podman.attempt("run", "--rm", *HARDENED, *mounted, image)
        assert refused.returncode == 1
        *logged, told = refused.stderr.splitlines()
        assert told.startswith(f"packshot: cannot serve: {why}")
        assert all(line.startswith("{") for line in logged)  # no traceback


def test_the_deployment_of_kubernetes_serves_and_drains(podman, image, models, tmp_path, ports):
    """By `podman play kube`, which runs no gRPC probes and knows neither Service nor autoscaler."""
    claim = "packshot-models"  # Podman takes a volume of that name for it
    podman("volume", "create", claim)
    podman(
        "run", "--rm", "--user", "0", "--volume", f"{models}:/from:ro",
        "--volume", f"{claim}:/to", "--entrypoint", "cp", image, "-r", "/from/.", "/to",
    )  # fmt: skip
    played = tmp_path / "deployment.yaml"
    played.write_text(yaml.safe_dump_all(playable(image, ports)))
    podman("play", "kube", played)
    try:
        server = Container(podman, "packshot-pod-0-server")
        server.wait_until_ready()
        with Client(ports.target, timeout_seconds=TIMEOUT) as client:
            assert client.classify(jpeg(PURE["red"]))[0].label == "red"
            assert client.model().engine == "fp32"
        assert "drain_delay_seconds=10.0 (environment)" in server.log
        assert server.execute("id", "-u").stdout == "10001\n"
        assert "Read-only file system" in server.execute("touch", "/models/x").stderr
        # A volume of its own for what OpenVINO compiled.
        assert server.execute("sh", "-c", 'touch "$PACKSHOT_COMPILED_MODELS/x"').returncode == 0
        assert server.stop() == 0
        assert '"event":"drained"' in server.log
    finally:
        podman("play", "kube", "--down", played)


def playable(image: str, ports: Ports) -> Iterator[dict]:
    """The overlay as it is, but for the image's name and ports of this machine."""
    for one in rendered(KUBERNETES / "overlays" / "cpu"):
        if one["kind"] == "Deployment":
            one = copy.deepcopy(one)
            [container] = one["spec"]["template"]["spec"]["containers"]
            container |= {"image": image, "imagePullPolicy": "Never"}
            for port, here in zip(container["ports"], (ports.grpc, ports.http), strict=True):
                port |= {"hostIP": "127.0.0.1", "hostPort": here}
        if one["kind"] in ("ConfigMap", "Deployment"):
            yield one


def test_only_what_an_image_needs_is_sent_to_the_builder():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    assert ignored[0] == "*"
    copied = {
        line.split()[1]
        for line in (ROOT / "deploy" / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
    }
    allowed = {line[1:] for line in ignored if line.startswith("!")}
    assert {name for name in copied if not name.startswith("deploy/locks/")} <= allowed | {
        "pyproject.toml"
    }
