"""The manifests of deploy/ as kustomize gives them: what `kubectl apply -k` would send."""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from processes import ROOT

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


@functools.cache
def composed(*components: str) -> Manifests:
    """The base with these components, in this order, as an overlay would list them."""
    with tempfile.TemporaryDirectory() as folder:
        listed = [KUBERNETES / "components" / name for name in components]
        kustomization = {
            "namespace": "shop",
            "resources": [os.path.relpath(KUBERNETES / "base", folder)],
            "components": [os.path.relpath(one, folder) for one in listed],
        }
        Path(folder, "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
        return rendered(Path(folder))
