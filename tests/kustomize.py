"""The manifests of deploy/ as kustomize gives them: what `kubectl apply -k` would send."""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from custom_resources import SCHEMAS, check_custom_resource
from processes import ROOT

import packshot

DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"

Object = dict[str, Any]


class Manifests(list[Object]):
    """Objects of one render."""

    def of(self, kind: str) -> list[Object]:
        return [one for one in self if one["kind"] == kind]

    def the(self, kind: str, name: str = "packshot") -> Object:
        [found] = [one for one in self.of(kind) if one["metadata"]["name"] == name]
        return found

    def pods(self) -> Iterator[tuple[Object, Object]]:
        """(labels, spec) of the pods that any of the objects starts."""
        for one in self:
            match one["kind"]:
                case "Pod":
                    yield one["metadata"].get("labels", {}), one["spec"]
                case "Deployment" | "Job":
                    template = one["spec"]["template"]
                    yield template["metadata"]["labels"], template["spec"]
                case "TrainingRuntime":
                    [job] = one["spec"]["template"]["spec"]["replicatedJobs"]
                    template = job["template"]["spec"]["template"]
                    yield template["metadata"]["labels"], template["spec"]

    def containers(self) -> Iterator[tuple[Object, Object]]:
        """(pod's spec, container), those that run first among them."""
        for _, pod in self.pods():
            for container in [*pod.get("initContainers", []), *pod["containers"]]:
                yield pod, container

    @property
    def server(self) -> Object:
        """The pod of the server."""
        spec: Object = self.the("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def settings(self) -> dict[str, str]:
        """What the server finds in its environment."""
        [container] = self.server["containers"]
        [source] = container["envFrom"]
        found: dict[str, str] = self.the("ConfigMap", source["configMapRef"]["name"])["data"]
        return found


OLDEST, NEWEST = "1.32", "1.37"
"""Of Kubernetes: what is checked, and what deploy/kubernetes/README.md says."""


def check_schema(one: Object, version: str) -> None:
    """Raises jsonschema.ValidationError for a field that is not known, or of a wrong type."""
    if one["kind"] in SCHEMAS:
        check_custom_resource(one)
    else:
        kubernetes_validate.validate(one, version, strict=True)


def check_pods(manifests: Manifests, version: str) -> None:
    """Those inside of custom resources too."""
    for labels, spec in manifests.pods():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "one", "labels": labels}}
        kubernetes_validate.validate({**pod, "spec": spec}, version, strict=True)


def quantity(given: object) -> Decimal:
    """As Kubernetes reads it: "500m", "1Gi", 2. Raises ValueError."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)(m|k|M|G|T|Ki|Mi|Gi|Ti)?", str(given))
    if found is None:
        raise ValueError(f"{given!r} is no quantity")
    number, unit = found.groups()
    factors = {None: Decimal(1), "m": Decimal("0.001")}
    factors |= {unit: Decimal(1000**power) for power, unit in enumerate("kMGT", 1)}
    factors |= {f"{unit}i": Decimal(1024**power) for power, unit in enumerate("KMGT", 1)}
    return Decimal(number) * factors[unit]


def check_resources(container: Object) -> None:
    """Cores of its own, evicted last; and whole ones: programs run as many threads as cores."""
    resources = container["resources"]
    assert resources["requests"] == resources["limits"]
    assert {"cpu", "memory"} <= resources["limits"].keys()
    assert all(quantity(value) > 0 for value in resources["limits"].values())
    assert quantity(resources["limits"]["cpu"]) % 1 == 0


def check_volumes(manifests: Manifests) -> None:
    """Each is there, of one kind, and mounted as a folder: kubelet never renews a subPath."""
    for pod, container in manifests.containers():
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        assert len(volumes) == len(pod["volumes"])
        assert all(len(volume) == 2 for volume in volumes.values()), volumes  # a name, a source
        for mount in container["volumeMounts"]:
            assert mount["name"] in volumes
            assert "subPath" not in mount
    for claim in manifests.of("PersistentVolumeClaim"):
        assert quantity(claim["spec"]["resources"]["requests"]["storage"]) > 0
    for pod, _ in manifests.containers():
        for volume in pod["volumes"]:
            if "emptyDir" in volume:
                assert quantity(volume["emptyDir"]["sizeLimit"]) > 0


OURS = {"packshot-serve-cpu", "packshot-serve-gpu", "packshot-train"}
THEIRS = {"rclone/rclone:1.75.1"}


def check_image(image: str) -> None:
    name, _, tag = image.partition(":")
    assert image in THEIRS or (name in OURS and tag == packshot.__version__), image


def check_closed(manifests: Manifests) -> None:
    """Nothing of the pods can write, climb or act as somebody."""
    for pod, container in manifests.containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert pod["enableServiceLinks"] is False
        assert container["securityContext"] == CLOSED
        check_image(container["image"])


CLOSED = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def kubectl() -> str:
    """Its path; the test is skipped without it, in CI it fails."""
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        assert not os.environ.get("CI"), "CI must have kubectl: see .ci/run"
        pytest.skip("kubectl is not installed: make kubectl")
    return found


@functools.cache
def rendered(folder: Path) -> Manifests:
    """Of a folder with a kustomization. Nobody may change what is returned."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(folder)], text=True, capture_output=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr, done.stderr  # warnings: fields that are deprecated
    return Manifests(one for one in yaml.safe_load_all(done.stdout) if one is not None)


def fenced(page: Path, kind: str) -> list[str]:
    """Blocks of a page of Markdown that are fenced as `kind`."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def shown(page: Path, folder: Path) -> Iterator[Manifests]:
    """What the kustomizations on a page give, written beside a folder `packshot` as it says."""
    (folder / "packshot").symlink_to(ROOT)
    for number, block in enumerate(fenced(page, "yaml")):
        if "\nkind: Kustomization\n" in block:
            overlay = folder / f"overlay{number}"
            overlay.mkdir()
            (overlay / "kustomization.yaml").write_text(block)
            yield rendered(overlay)


def lines_of_an_overlay(page: Path, having: str) -> Object:
    """What a page tells to add to an overlay: the only block without a kind that has this text."""
    blocks = [one for one in fenced(page, "yaml") if "\nkind: Kustomization\n" not in one]
    [found] = [one for one in blocks if having in one]
    added: Object = yaml.safe_load(found)
    return added


@functools.cache
def composed(*components: str) -> Manifests:
    """The base with these components, in this order, as an overlay would list them."""
    return overlay(*components)


def overlay(*components: str, **added: Any) -> Manifests:
    """As `composed`, with more in the kustomization: images, patches, labels ..."""
    with tempfile.TemporaryDirectory() as folder:
        listed = [KUBERNETES / "components" / name for name in components]
        kustomization = {
            "namespace": "shop",
            "resources": [os.path.relpath(KUBERNETES / "base", folder)],
            "components": [os.path.relpath(one, folder) for one in listed],
            **added,
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return rendered(Path(folder))
