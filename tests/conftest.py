import logging
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from load_programs import LOAD
from processes import ROOT, TIMEOUT, Server, serving
from tiny import colour_network, tiny_bundle

from packshot import Client
from packshot.errors import EngineRefused
from serving.engines.gpu import probe_gpu

# PyTorch's threads spin while they wait for each other. Here they share the cores with loaders,
# servers and whatever else runs: training then takes three times as long. Read when it is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Servers under test leave nothing in the home folder: here nothing can be kept.
os.environ["PACKSHOT_COMPILED_MODELS"] = os.devnull


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` are skipped, and say why, where there is none."""
    for_gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not for_gpu:
        return
    try:
        probe_gpu()
    except EngineRefused as refused:
        for item in for_gpu:
            item.add_marker(pytest.mark.skip(reason=f"{refused.reason}: {refused}"))


@pytest.fixture(autouse=True)
def plain_log_records() -> None:
    """Ray, once imported, puts a field of its own into every record of the process."""
    logging.setLogRecordFactory(logging.LogRecord)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A store with one version of the tiny bundle "colours"."""
    tiny_bundle(tmp_path / "models")
    return tmp_path / "models"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the tiny bundle whose int8 engine is wrong, so that fp32 answers."""
    models = tmp_path_factory.mktemp("models")
    tiny_bundle(models, int8=colour_network(sign=-1))
    with serving(
        "--models", models, "--engines", "int8,fp32", "--max-image-pixels", 2_000_000
    ) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """Of the module's server."""
    with Client(server.target, timeout_seconds=TIMEOUT) as client:
        yield client


@pytest.fixture
def interruptible() -> Iterator[Callable[..., "subprocess.Popen[str]"]]:
    """Starts `packshot load` as a terminal does: in a process group of its own, which Ctrl-C is
    for."""
    started: list[subprocess.Popen[str]] = []

    def start(server: Server, *options: object, ignored: str = "") -> "subprocess.Popen[str]":
        shell = ("sh", "-c", f'trap "" {ignored}; exec "$@"', "sh") if ignored else ()
        loading = subprocess.Popen(
            [*shell, *LOAD, "--target", server.target, *map(str, options)],
            cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, process_group=0,
        )  # fmt: skip
        started.append(loading)
        return loading

    yield start
    for loading in started:
        with loading:  # a test that failed must not leave it to those that follow
            loading.kill()


@pytest.fixture(scope="session")
def resnet50(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ResNet-50 of random weights for 5 classes, as the exporter writes it: fp32 ONNX."""
    import torch

    from exporters.to_onnx import export_onnx
    from packshot.image import ImageSpec
    from trainer.model import new_network

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("resnet50") / "model.onnx"
    spec = ImageSpec()
    export_onnx(new_network("resnet50", 5, spec), spec, path, {"packshot.labels": "a\nb\nc\nd\ne"})
    return path


@pytest.fixture(scope="session")
def resnet50_fp16(resnet50: Path) -> Path:
    from exporters.to_fp16 import convert_fp16

    path = resnet50.with_name("model.fp16.onnx")
    convert_fp16(resnet50, path)
    return path


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of published weights, and no network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder
