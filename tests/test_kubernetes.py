"""deploy/kubernetes, rendered by kustomize: every overlay, and components in every sensible mix."""

import itertools
import os
import re
from decimal import Decimal
from pathlib import Path

import kubernetes_validate
import promql_parser
import pytest
from custom_resources import SCHEMAS, check_custom_resource
from kustomize import KUBERNETES, Manifests, composed, rendered

import packshot
from serving.app import SENDING_SECONDS, SERVICES
from serving.command_line import parse_settings
from serving.metrics import Metrics
from serving.settings import Settings

OLDEST, NEWEST = "1.32", "1.37"
"""Of Kubernetes: what is checked, and what deploy/kubernetes/README.md says."""

DELIVERIES = ("models-pvc", "models-download", "models-image")
AUTOSCALERS = ("hpa-custom", "keda")
OPTIONS = ("networkpolicy", "tls", "mtls", "tokens", "otel", "monitoring")
NEEDS = {"mtls": ("tls",)}
FOLDERS = {
    "cpu": KUBERNETES / "overlays" / "cpu",
    "gpu": KUBERNETES / "overlays" / "gpu",
}
JOBS = {"build-plan": KUBERNETES / "overlays" / "gpu" / "build-plan"}


def combinations() -> list[tuple[str, ...]]:
    """Each component alone; and everything at once, by each delivery, autoscaler and device."""
    alone = [(one,) for one in DELIVERIES]
    alone += [("models-pvc", *NEEDS.get(one, ()), one) for one in (*OPTIONS, *AUTOSCALERS, "gpu")]
    together = [
        (*OPTIONS, delivery, *scaler, *device)
        for delivery, scaler, device in itertools.product(
            DELIVERIES, [(), *((one,) for one in AUTOSCALERS)], [(), ("gpu",)]
        )
    ]
    return alone + together


@pytest.fixture(
    scope="module",
    params=[*FOLDERS, *combinations()],
    ids=lambda one: one if isinstance(one, str) else "+".join(one),
)
def service(request) -> Manifests:
    if isinstance(request.param, str):
        return rendered(FOLDERS[request.param])
    return composed(*request.param)


def test_every_component_is_in_the_mix():
    named = {name for parts in combinations() for name in parts}
    assert named == {path.name for path in (KUBERNETES / "components").iterdir()}
    assert {path.name for path in (KUBERNETES / "overlays").iterdir()} == set(FOLDERS)


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field(service, version):
    for one in service:
        if one["kind"] in SCHEMAS:
            check_custom_resource(one)
        else:
            kubernetes_validate.validate(one, version, strict=True)


def test_selectors_find_the_server(service):
    [(labels, _)] = service.pods()
    for one in service:
        selector = one.get("spec", {}).get("selector") or one.get("spec", {}).get("podSelector")
        if selector is not None:
            wanted = selector.get("matchLabels", selector)
            assert wanted, one["kind"]
            assert wanted.items() <= labels.items(), one["kind"]
    for spread in service.server["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"].items() <= labels.items()


def ports(service: Manifests) -> dict[str, int]:
    [container] = service.server["containers"]
    return {port["name"]: port["containerPort"] for port in container["ports"]}


def test_ports_by_name_are_those_that_the_server_listens_on(service):
    settings = Settings.model_fields
    assert ports(service) == {
        "grpc": settings["port"].default,
        "http": settings["http_port"].default,
    }
    named = [port["targetPort"] for one in service.of("Service") for port in one["spec"]["ports"]]
    for monitor in service.of("PodMonitor"):
        named += [endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]]
    for policy in service.of("NetworkPolicy"):
        named += [port["port"] for rule in policy["spec"]["ingress"] for port in rule["ports"]]
    assert len(named) >= 2
    assert set(named) <= set(ports(service))


def probes(service: Manifests) -> dict[str, dict]:
    [container] = service.server["containers"]
    return {name: container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")}


def test_probes_ask_what_the_server_answers(service):
    for name, probe in probes(service).items():
        plain = "PACKSHOT_TLS_CERT" not in service.settings  # kubelet's gRPC probes cannot do TLS
        assert ("grpc" in probe, "httpGet" in probe) == (plain, not plain)
        alive = name == "liveness"
        if plain:
            assert probe["grpc"]["port"] == ports(service)["grpc"]
            assert probe["grpc"]["service"] in (("",) if alive else SERVICES)
        else:
            assert probe["httpGet"] == {"path": "/livez" if alive else "/readyz", "port": "http"}


def seconds(service: Manifests, name: str) -> float:
    default = Settings.model_fields[name].default
    return float(service.settings.get(f"PACKSHOT_{name.upper()}", default))


def test_a_pod_has_the_time_to_drain(service):
    pod = service.server
    [container] = pod["containers"]
    assert "lifecycle" not in container  # it would only take from the time of the drain
    delay, timeout = (seconds(service, f"drain_{name}_seconds") for name in ("delay", "timeout"))
    # Between the two: the batch that runs, replies on their way, closing.
    assert pod["terminationGracePeriodSeconds"] >= delay + timeout + 2 * SENDING_SECONDS + 10
    assert timeout >= seconds(service, "default_timeout_ms") / 1000
    ready = probes(service)["readiness"]
    assert delay >= ready["periodSeconds"] * ready["failureThreshold"]


def test_a_rollout_gives_up_after_a_pod_had_time_to_start(service):
    startup = probes(service)["startup"]
    limit = startup["periodSeconds"] * startup["failureThreshold"]
    assert service.the("Deployment")["spec"]["progressDeadlineSeconds"] > limit


def quantity(given: object) -> Decimal:
    """As Kubernetes reads it: "500m", "1Gi", 2. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(given))
    if found is None:
        raise ValueError(f"{given!r} is no quantity")
    number, unit = found.groups()
    factors = {None: "1", "m": "0.001"}
    factors |= {unit: 1000**power for power, unit in enumerate("kMGT", 1)}
    factors |= {f"{unit}i": 1024**power for power, unit in enumerate("KMGT", 1)}
    return Decimal(number) * Decimal(factors[unit])


@pytest.mark.parametrize("wrong", ["2GGi", "1.5.2", "-1", "1 Gi", "Mi", "0x10", "1g"])
def test_what_is_no_quantity_is_refused(wrong):
    with pytest.raises(ValueError, match="no quantity"):
        quantity(wrong)


def test_quantities_are_quantities(service):
    assert quantity("1.5Gi") == 1536 * 1024**2
    for _, container in service.containers():
        resources = container["resources"]
        assert resources["requests"] == resources["limits"]  # cores of one's own, last evicted
        assert {"cpu", "memory"} <= resources["limits"].keys()
        assert all(quantity(value) > 0 for value in resources["limits"].values())
        # There is a lane a core: half a core would be a lane that is stopped half the time.
        assert quantity(resources["limits"]["cpu"]) % 1 == 0
    for claim in service.of("PersistentVolumeClaim"):
        assert quantity(claim["spec"]["resources"]["requests"]["storage"]) > 0
    for volume in service.server["volumes"]:
        if size := volume.get("emptyDir", {}).get("sizeLimit"):
            assert quantity(size) > 0


def test_memory_holds_what_the_settings_let_in(service):
    [container] = service.server["containers"]
    limits = container["resources"]["limits"]
    measured = 258e6  # docs/performance.md: under load, one model in INT8
    decoding = 16 * seconds(service, "max_image_pixels") * float(quantity(limits["cpu"]))
    another = 200e6  # a new version, proved beside the one that serves
    needed = measured + decoding + another + seconds(service, "max_queued_bytes")
    assert float(quantity(limits["memory"])) >= needed


def test_one_autoscaler_has_the_deployment(service):
    scalers = [*service.of("HorizontalPodAutoscaler"), *service.of("ScaledObject")]
    [scaler] = scalers
    deployment = service.the("Deployment")
    assert "replicas" not in deployment["spec"]  # applied again, it would undo the scaling
    target = scaler["spec"]["scaleTargetRef"]
    assert target["name"] == deployment["metadata"]["name"]
    for metric in scaler["spec"].get("metrics", []):
        if metric["type"] == "Resource":
            [container] = service.server["containers"]
            assert metric["resource"]["name"] in container["resources"]["requests"]
        else:
            assert metric["pods"]["metric"]["name"] in gauges()
    for trigger in scaler["spec"].get("triggers", []):
        assert asked_for(trigger["metadata"]["query"]) <= gauges()


def gauges() -> set[str]:
    return {family.name for family in Metrics().registry.collect()}


def asked_for(query: str) -> set[str]:
    """Names of the metrics in a PromQL expression. Raises ValueError."""
    promql_parser.parse(query)
    return set(re.findall(r"\bpackshot_\w+", query))


def test_disruptions_leave_a_pod_that_serves(service):
    scalers = [*service.of("HorizontalPodAutoscaler"), *service.of("ScaledObject")]
    [least] = [one["spec"].get("minReplicas") or one["spec"]["minReplicaCount"] for one in scalers]
    budget = service.the("PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] < least
    update = service.the("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": 1, "maxUnavailable": 0}


def test_every_setting_is_accepted(service, tmp_path, monkeypatch):
    for name, value in environment(service, tmp_path).items():
        monkeypatch.setenv(name, value)
    settings = parse_settings([])
    given = {f"PACKSHOT_{name.upper()}" for name in settings.origins}
    assert given >= service.settings.keys()


def environment(service: Manifests, folder: Path) -> dict[str, str]:
    """What the server finds in its pod, with mounted Secrets below `folder` instead."""
    found = {"PACKSHOT_MODELS": "/models", "PACKSHOT_HOST": "0.0.0.0", **service.settings}
    mounted = {mount["mountPath"] for mount in service.server["containers"][0]["volumeMounts"]}
    for name, value in found.items():
        if value.startswith(("/tls/", "/tokens/")):
            assert str(Path(value).parent) in mounted, value
            file = folder / value.lstrip("/")
            file.parent.mkdir(exist_ok=True)
            if not file.exists():
                file.touch()
            found[name] = str(file)
    return found


@pytest.fixture(autouse=True)
def no_environment(monkeypatch):
    for name in [name for name in os.environ if name.startswith("PACKSHOT_")]:
        monkeypatch.delenv(name)


def test_volumes_are_there_and_of_one_kind(service):
    for pod, container in service.containers():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert len(volumes) == len(pod["volumes"])
        assert all(len(volume) == 2 for volume in volumes.values()), volumes  # its name, its source
        for mount in container["volumeMounts"]:
            assert mount["name"] in volumes
            # Kubelet never renews what is mounted so.
            assert "subPath" not in mount
    [server] = service.server["containers"]
    assert all(mount["readOnly"] for mount in server["volumeMounts"])


README = (KUBERNETES / "README.md").read_text()


def test_what_is_referred_to_is_there_or_the_reader_is_told_to_make_it(service):
    maps = {one["metadata"]["name"] for one in service.of("ConfigMap")}
    claims = {one["metadata"]["name"] for one in service.of("PersistentVolumeClaim")}
    accounts = {one["metadata"]["name"] for one in service.of("ServiceAccount")}
    for pod, container in service.containers():
        assert pod["serviceAccountName"] in accounts
        for source in container.get("envFrom", []):
            if "configMapRef" in source:
                assert source["configMapRef"]["name"] in maps
            else:
                assert f"secret generic {source['secretRef']['name']}" in README
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert re.search(rf"secret (generic|tls) {volume['secret']['secretName']}", README)


OURS = {"packshot-serve-cpu", "packshot-serve-gpu", "packshot-train"}
THEIRS = {"rclone/rclone:1.75.1"}


def check_closed(manifests: Manifests) -> None:
    """Nothing of the pods can write, climb or act as somebody."""
    for pod, container in manifests.containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def check_images(manifests: Manifests) -> None:
    for _, container in manifests.containers():
        name, _, tag = container["image"].partition(":")
        assert container["image"] in THEIRS or (name in OURS and tag == packshot.__version__)


def test_pods_are_closed(service):
    check_closed(service)
    check_images(service)


def test_objects_share_a_namespace(service):
    [namespace] = service.of("Namespace")
    name = namespace["metadata"]["name"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = {one["metadata"].get("namespace") for one in service if one is not namespace}
    assert inside == {name}
