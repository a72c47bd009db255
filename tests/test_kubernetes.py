"""deploy/kubernetes, rendered by kustomize: every overlay, and components in every sensible mix."""

import importlib.util
import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from urllib.parse import urlsplit

import grpc
import promql_parser
import pytest
import yaml
from certificates import Authority
from grpc_health.v1 import health_pb2, health_pb2_grpc
from kustomize import (
    DEPLOY,
    KUBERNETES,
    NEWEST,
    OLDEST,
    Manifests,
    check_closed,
    check_pods,
    check_resources,
    check_schema,
    check_volumes,
    composed,
    lines_of_an_overlay,
    overlay,
    quantity,
    rendered,
    shown,
)
from processes import ROOT, TIMEOUT, serving

import packshot
from packshot import Client, Tls
from packshot.cli import main
from packshot.errors import Unauthenticated
from serving.app import SENDING_SECONDS, SERVICES
from serving.command_line import parse_settings
from serving.engines.compiled import MOST_BYTES
from serving.metrics import Metrics
from serving.settings import Settings

DELIVERIES = ("models-pvc", "models-download", "models-image")
AUTOSCALERS = ("hpa-custom", "keda")
OPTIONS = ("networkpolicy", "tls", "mtls", "tokens", "otel", "monitoring")
NEEDS = {"mtls": ("tls",)}
FOLDERS = {
    "cpu": KUBERNETES / "overlays" / "cpu",
    "gpu": KUBERNETES / "overlays" / "gpu",
}


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
        check_schema(one, version)
    check_pods(service, version)


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


@pytest.mark.parametrize("wrong", ["2GGi", "1.5.2", "-1", "1 Gi", "Mi", "0x10", "1g"])
def test_what_is_no_quantity_is_refused(wrong):
    with pytest.raises(ValueError, match="no quantity"):
        quantity(wrong)


def test_what_a_container_asks_for_is_what_it_gets(service):
    assert quantity("1.5Gi") == 1536 * 1024**2
    for _, container in service.containers():
        check_resources(container)


def test_memory_holds_what_the_settings_let_in(service):
    [container] = service.server["containers"]
    limits = container["resources"]["limits"]
    measured = 350e6  # docs/performance.md: one model in INT8 on OpenVINO, at five times the peak
    decoding = 16 * seconds(service, "max_image_pixels") * float(quantity(limits["cpu"]))
    another = 260e6  # a new version, proved beside the one that serves
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


def test_the_policy_opens_what_the_other_components_need(service):
    check_egress(service)


def check_egress(service: Manifests) -> None:
    for policy in service.of("NetworkPolicy"):
        opened = {
            (namespace_of(rule), port["port"])
            for rule in policy["spec"]["egress"]
            for port in rule["ports"]
        }
        asked: set[tuple[str | None, int | None]] = {("kube-system", 53)}
        if endpoint := service.settings.get("PACKSHOT_OTLP_ENDPOINT"):
            url = urlsplit(endpoint)
            asked.add((url.hostname.split(".")[1], url.port))  # service.namespace
        if "initContainers" in service.server:  # they copy the models
            asked.add((None, 443))
        assert opened == asked


def namespace_of(rule: dict) -> str | None:
    """That a rule opens calls to; None: anywhere."""
    if "to" not in rule:
        return None
    [peer] = rule["to"]
    name: str = peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"]
    return name


def test_the_copied_models_are_verified_before_the_server_starts(store, capsys):
    service = composed("models-download")
    download, verify = service.server["initContainers"]
    [source] = verify["envFrom"]
    told = service.the("ConfigMap", source["configMapRef"]["name"])["data"]
    words = [word.replace("$(MODEL)", told["MODEL"]) for word in verify["command"]]
    assert words == ["packshot", "models", "verify", "--models", "/models", "products"]
    assert download["args"] == ["copy", "$(SOURCE)/$(MODEL)", "/models/$(MODEL)"]
    assert told["SOURCE"].startswith("store:")  # what RCLONE_CONFIG_STORE_... configures
    [secret] = [one for one in download["envFrom"] if "secretRef" in one]
    assert secret["prefix"] == "RCLONE_CONFIG_STORE_"
    here = {"/models": str(store), "products": "colours"}
    assert main([here.get(word, word) for word in words[1:]]) == 0
    assert "colours 1: sound" in capsys.readouterr().out


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
    check_volumes(service)
    [server] = service.server["containers"]
    writable = [mount for mount in server["volumeMounts"] if not mount.get("readOnly")]
    assert [mount["mountPath"] for mount in writable] == [COMPILED_MODELS]
    [volume] = [one for one in service.server["volumes"] if one["name"] == writable[0]["name"]]
    assert quantity(volume["emptyDir"]["sizeLimit"]) > MOST_BYTES


COMPILED_MODELS = re.search(
    r"PACKSHOT_COMPILED_MODELS=(\S+)", (ROOT / "deploy" / "Dockerfile").read_text()
)[1]


PAGE = KUBERNETES / "README.md"
README = PAGE.read_text()


def told_to_make(secret: str) -> bool:
    return bool(re.search(rf"create secret (generic|tls) {secret} ", README))


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
                assert told_to_make(source["secretRef"]["name"])
        for volume in pod["volumes"]:
            if "persistentVolumeClaim" in volume:
                assert volume["persistentVolumeClaim"]["claimName"] in claims
            if "secret" in volume:
                assert told_to_make(volume["secret"]["secretName"])


def test_pods_are_closed(service):
    check_closed(service)


def test_objects_share_a_namespace(service):
    [namespace] = service.of("Namespace")
    name = namespace["metadata"]["name"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    inside = {one["metadata"].get("namespace") for one in service if one is not namespace}
    assert inside == {name}


def test_the_adapter_is_told_of_a_metric_that_there_is():
    values = yaml.safe_load(
        (KUBERNETES / "components" / "hpa-custom" / "prometheus-adapter.yaml").read_text()
    )
    [rule] = values["rules"]["custom"]
    assert asked_for(rule["seriesQuery"]) == {"packshot_saturation"} <= gauges()
    query = rule["metricsQuery"]
    filled = {"Series": "packshot_saturation", "LabelMatchers": 'pod="a"', "GroupBy": "pod"}
    for name, value in filled.items():
        assert f"<<.{name}>>" in query
        query = query.replace(f"<<.{name}>>", value)
    assert asked_for(query) == {"packshot_saturation"}


RULES = DEPLOY / "prometheus" / "rules.yaml"


def test_the_rules_are_those_of_deploy_prometheus():
    spec = importlib.util.spec_from_file_location("wrap", KUBERNETES / "prometheus_rule.py")
    wrap = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(wrap)
    written = wrap.WRAPPED.read_text()
    assert written == wrap.wrapped(RULES.read_text()), "python deploy/kubernetes/prometheus_rule.py"
    assert yaml.safe_load(written)["spec"] == yaml.safe_load(RULES.read_text())


def test_the_overlay_that_the_readme_shows_can_be_rendered(tmp_path):
    manifests, _ = shown(PAGE, tmp_path)
    for one in manifests:
        check_schema(one, NEWEST)
    check_volumes(manifests)
    names = {f"PACKSHOT_{name.upper()}" for name in Settings.model_fields}
    assert manifests.settings.keys() <= names
    assert manifests.settings["PACKSHOT_MODEL"] == "products"
    assert manifests.settings["PACKSHOT_OTLP_ENDPOINT"] == "http://collector.tracing:4317"
    check_egress(manifests)
    [container] = manifests.server["containers"]
    assert container["image"].startswith("registry.example.com/")
    assert manifests.of("PersistentVolumeClaim")[0]["spec"]["storageClassName"] == "nfs"


def test_the_store_that_the_readme_shows_comes_from_its_registry(tmp_path):
    servers, store = shown(PAGE, tmp_path)
    [container] = store.the("Pod", "store")["spec"]["containers"]
    assert container["image"] == f"{REGISTRY}/packshot-serve-cpu:{packshot.__version__}"
    [volume] = store.the("Pod", "store")["spec"]["volumes"]
    claim = volume["persistentVolumeClaim"]["claimName"]
    assert servers.the("PersistentVolumeClaim", claim)
    namespace = servers.the("PersistentVolumeClaim", claim)["metadata"]["namespace"]
    assert f"kubectl -n {namespace} " in README
    assert {one["metadata"]["namespace"] for one in store} == {namespace}


REGISTRY = "registry.example.com/shop"


def test_the_bucket_is_named_as_the_readme_says():
    added = lines_of_an_overlay(PAGE, "packshot-download")
    service = overlay("models-download", **added)
    _, verify = service.server["initContainers"]
    [source] = verify["envFrom"]
    told = service.the("ConfigMap", source["configMapRef"]["name"])["data"]
    assert told == {"SOURCE": "store:shop-models", "MODEL": "shoes"}


def test_a_patched_setting_rolls_the_pods():
    setting = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "packshot"}}
    patch = yaml.safe_dump({**setting, "data": {"PACKSHOT_MODEL": "shoes"}})
    service = overlay("models-pvc", patches=[{"patch": patch}])
    assert service.settings["PACKSHOT_MODEL"] == "shoes"
    assert service.server != composed("models-pvc").server  # the ConfigMap's name has a hash


def test_the_image_of_models_is_named_by_a_patch():
    component = KUBERNETES / "components" / "models-image"
    patch = (component / "volume.yaml").read_text()
    named = patch.replace("packshot-models:1", f"{REGISTRY}/packshot-models:3")
    service = overlay("models-image", patches=[{"patch": named}])
    [volume] = [one for one in service.server["volumes"] if "image" in one]
    assert volume["image"]["reference"] == f"{REGISTRY}/packshot-models:3"


def test_the_image_is_found_by_the_name_that_the_readme_gives():
    for components, name in [
        (("models-download",), "packshot-serve-cpu"),
        (("models-download", "gpu"), "packshot-serve-gpu"),
    ]:
        assert f"`{name}`" in README
        service = overlay(*components, images=[{"name": name, "newName": f"{REGISTRY}/{name}"}])
        ours = [container["image"] for _, container in service.containers()][1:]  # less rclone's
        assert ours == [f"{REGISTRY}/{name}:{packshot.__version__}"] * 2


def test_the_label_for_the_operator_is_where_it_looks():
    service = overlay("models-pvc", "monitoring", **lines_of_an_overlay(PAGE, "release:"))
    for kind in ("PodMonitor", "PrometheusRule"):
        [one] = service.of(kind)
        assert one["metadata"]["labels"]["release"] == "kube-prometheus-stack"
    assert "release" not in service.the("Deployment")["spec"]["selector"]["matchLabels"]
    groups = service.of("PrometheusRule")[0]["spec"]["groups"]
    assert "packshot.slo" in {group["name"] for group in groups}
    assert "`packshot.slo`" in README


@pytest.mark.parametrize(("kind", "components"), [("hpa", ()), ("scaledobject", ("keda",))])
def test_scaling_by_hand_sets_what_the_autoscaler_has(kind, components):
    [patch] = re.findall(r"patch hpa packshot --type merge -p '(.*)'", README)
    given = json.loads(patch)["spec"].keys()
    if kind == "scaledobject":
        given = {name.replace("Replicas", "ReplicaCount") for name in given}
        assert all(f"`{name}`" in README for name in given)
    service = composed("models-pvc", *components)
    [scaler] = [*service.of("HorizontalPodAutoscaler"), *service.of("ScaledObject")]
    assert given <= scaler["spec"].keys()
    assert re.search(rf"(patch |\(KEDA: `){kind}\b", README)
    assert 10 in scaler["spec"].values()
    assert "`maxReplicas`, 10" in README


def pages() -> list[Path]:
    return [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *DEPLOY.rglob("*.md")]


def test_no_page_has_volumes_deleted_by_the_way():
    told = {
        folder
        for page in pages()
        for folder in re.findall(r"kubectl delete -k (deploy/[\w/-]+)", page.read_text())
    }
    assert "deploy/training/claims" in told  # there it is what is wanted, and said
    for folder in told - {"deploy/training/claims"}:
        gone = {one["kind"] for one in rendered(ROOT / folder)}
        assert not gone & {"PersistentVolumeClaim", "Namespace"}, folder


def test_make_renders_every_folder_into_its_namespace():
    listed = subprocess.run(
        ["make", "--silent", "--eval=listed: ; @echo $(MANIFESTS)", "listed"],
        cwd=ROOT, check=True, text=True, capture_output=True, timeout=60,
    )  # fmt: skip
    folders = {DEPLOY / name for name in listed.stdout.split()}
    kustomizations = DEPLOY.rglob("kustomization.yaml")
    there = {one.parent for one in kustomizations if "kind: Kustomization\n" in one.read_text()}
    assert folders == there - {KUBERNETES / "base"}
    for folder in folders:
        inside = [one["metadata"] for one in rendered(folder) if one["kind"] != "Namespace"]
        wanted = "packshot-kserve" if folder.name == "kserve" else "packshot"
        assert {metadata.get("namespace") for metadata in inside} == {wanted}, folder


def test_the_pages_push_the_version_that_the_manifests_name():
    for page in (PAGE, DEPLOY / "kserve" / "README.md"):
        pushed = re.findall(r"packshot-serve-cpu:([\d.]+)", page.read_text())
        assert {*pushed} == {packshot.__version__}


def test_the_readme_names_every_component_and_both_versions():
    for path in (KUBERNETES / "components").iterdir():
        assert f"`{path.name}`" in README, path.name
    assert f"{OLDEST} to {NEWEST}" in README


@pytest.fixture
def health(store, tmp_path, monkeypatch):
    """A function that starts the real server as a pod's environment tells it to."""

    def start(service: Manifests):
        told = environment(service, tmp_path)
        told |= {"PACKSHOT_MODELS": str(store), "PACKSHOT_HOST": "127.0.0.1"}
        for name, value in told.items():
            monkeypatch.setenv(name, value)
        return serving()

    return start


def test_the_real_server_answers_the_probes(health):
    service = rendered(FOLDERS["cpu"])
    with health(service) as server, grpc.insecure_channel(server.target) as channel:
        for probe in probes(service).values():
            request = health_pb2.HealthCheckRequest(service=probe["grpc"]["service"])
            reply = health_pb2_grpc.HealthStub(channel).Check(request, timeout=TIMEOUT)
            assert reply.status == health_pb2.HealthCheckResponse.SERVING
        for path in ("/livez", "/readyz", "/metrics"):
            assert server.page(path)[0] == 200


def test_the_real_server_is_closed_as_the_components_say(health, tmp_path):
    service = composed("models-pvc", "tls", "mtls", "tokens")
    for folder in ("tls", "tokens"):
        (tmp_path / folder).mkdir()
    secret, token = tmp_path / "tls", "0123456789abcdef"
    authority = Authority()
    authority.pem(secret / "ca.crt")
    authority.issue(secret / "tls.crt", secret / "tls.key")  # as cert-manager names them
    authority.issue(tmp_path / "me.crt", tmp_path / "me.key", name="client")
    (tmp_path / "tokens" / "tokens").write_text(f"{token}\n")
    tls = Tls(ca=secret / "ca.crt", cert=tmp_path / "me.crt", key=tmp_path / "me.key")
    with health(service) as server:
        for probe in probes(service).values():
            assert server.page(probe["httpGet"]["path"])[0] == 200
        with Client(server.target, tls=tls, token=token, timeout_seconds=TIMEOUT) as client:
            assert client.model().model == "colours"
        with (
            Client(server.target, tls=tls, timeout_seconds=TIMEOUT) as client,
            pytest.raises(Unauthenticated),
        ):
            client.model()
