"""The compose file: what it names is there, and its parts fit each other and the server.

It is not started here: that takes images from a registry.
"""

import json
import re
import shlex
import subprocess

import pytest
import yaml
from processes import ROOT, program
from scraped import need

import packshot
from packshot.services import CLASSIFIER
from serving.settings import Settings, options

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
SERVER, PROMETHEUS, GRAFANA = (SERVICES[name] for name in ("server", "prometheus", "grafana"))
every_service = pytest.mark.parametrize("service", SERVICES)
# What is made before: by `make export`.
MADE = {"../models"}


def mounts(service: dict) -> dict[str, tuple[str, str]]:
    """By the path in the container: source and mode."""
    found = {}
    for one in service["volumes"]:
        if isinstance(one, str):
            source, target, mode = f"{one}:rw".split(":")[:3]
        else:
            source, target, mode = one["source"], one["target"], "ro" if one["read_only"] else "rw"
        found[target] = (source, mode)
    return found


def seconds(duration: str) -> float:
    return float(re.fullmatch(r"(\d+)s", duration)[1])


def load(name: str) -> dict:
    return yaml.safe_load((DEPLOY / name).read_text())


@every_service
def test_a_service_can_do_little_and_is_reached_from_this_machine_alone(service):
    one = SERVICES[service]
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert one["mem_limit"]
    assert "privileged" not in one
    assert "network_mode" not in one
    for port in one["ports"]:
        assert port.startswith("127.0.0.1:"), port


@every_service
def test_what_is_mounted_is_there_and_cannot_be_changed(service):
    for source, mode in mounts(SERVICES[service]).values():
        if source in COMPOSE["volumes"]:
            continue
        assert mode == "ro", source
        assert source in MADE or (DEPLOY / source).exists(), source


def test_memory_holds_what_the_settings_let_in():
    """By the sum of tests/test_kubernetes.py: measured, decoded on each core, queued, another."""
    told = SERVER["environment"]
    decoding = 16 * int(told["PACKSHOT_MAX_IMAGE_PIXELS"]) * SERVER["cpus"]
    needed = 258e6 + decoding + int(told["PACKSHOT_MAX_QUEUED_BYTES"]) + 200e6
    assert int(SERVER["mem_limit"].removesuffix("g")) * 2**30 >= needed


def test_what_openvino_compiled_is_kept():
    dockerfile = (DEPLOY / "Dockerfile").read_text()
    folder = re.search(r"PACKSHOT_COMPILED_MODELS=(\S+)", dockerfile)[1]
    assert mounts(SERVER)[folder] == ("compiled", "rw")


def test_a_missing_store_is_not_made_by_root():
    models = SERVER["volumes"][0]
    assert models["bind"] == {"create_host_path": False}


def test_images_have_versions():
    assert SERVER["image"] == f"packshot-serve-cpu:{packshot.__version__}"
    for service in (PROMETHEUS, GRAFANA):
        assert re.search(r":v?\d+\.\d+\.\d+$", service["image"])


def test_the_image_is_a_target_of_the_dockerfile():
    build = SERVER["build"]
    assert (DEPLOY / build["context"]).resolve() == ROOT
    dockerfile = (ROOT / build["dockerfile"]).read_text()
    assert re.search(rf"^FROM \S+ AS {build['target']}$", dockerfile, re.MULTILINE)


def test_the_server_knows_what_it_is_told(monkeypatch):
    told = SERVER["environment"]
    assert set(told) <= {f"PACKSHOT_{name.upper()}" for name in options()}
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    settings = Settings()
    assert str(settings.models) in mounts(SERVER)
    assert settings.drain_delay_seconds + settings.drain_timeout_seconds < seconds(
        SERVER["stop_grace_period"]
    )
    inside = {int(port.rsplit(":", 1)[1]) for port in SERVER["ports"]}
    assert inside == {settings.port, settings.http_port}
    assert SERVER["read_only"]


def test_the_probe_asks_whether_the_server_is_ready():
    kind, *command = SERVER["healthcheck"]["test"]
    assert kind == "CMD"
    assert command[command.index("--service") + 1] == CLASSIFIER
    done = program("packshot.cli", "probe", "--help")
    for flag in (one for one in command if one.startswith("--")):
        assert flag in done.stdout, shlex.join(command)
    assert float(command[command.index("--timeout") + 1]) < seconds(
        SERVER["healthcheck"]["timeout"]
    )


def test_prometheus_scrapes_the_server_and_reads_the_rules():
    config = load("prometheus/prometheus.yaml")
    targets = config["scrape_configs"][0]["static_configs"][0]["targets"]
    assert targets == [f"server:{SERVER['environment']['PACKSHOT_HTTP_PORT']}"]
    command = dict(one.split("=") for one in PROMETHEUS["command"])
    mounted = mounts(PROMETHEUS)
    assert mounted[command["--config.file"]][0] == "./prometheus/prometheus.yaml"
    folder = command["--config.file"].rsplit("/", 1)[0]
    assert config["rule_files"] == ["rules.yaml"]
    assert mounted[f"{folder}/rules.yaml"][0] == "./prometheus/rules.yaml"
    assert command["--storage.tsdb.path"] in mounted


def test_promtool_accepts_the_configuration():
    need("promtool")
    command = ["promtool", "check", "config", str(DEPLOY / "prometheus" / "prometheus.yaml")]
    done = subprocess.run(command, text=True, capture_output=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_grafana_finds_prometheus_and_the_dashboard():
    (source,) = load("grafana/provisioning/datasources/prometheus.yaml")["datasources"]
    port = PROMETHEUS["ports"][0].rsplit(":", 1)[1]
    assert source["url"] == f"http://prometheus:{port}"
    scraped = load("prometheus/prometheus.yaml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped
    (provider,) = load("grafana/provisioning/dashboards/packshot.yaml")["providers"]
    mounted = mounts(GRAFANA)
    home = GRAFANA["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert home.rsplit("/", 1)[0] == provider["options"]["path"]
    dashboard = DEPLOY / mounted[home][0]
    assert json.loads(dashboard.read_text())["uid"] == "packshot"
    assert mounted["/etc/grafana/provisioning"][0] == "./grafana/provisioning"
