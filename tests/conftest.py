from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import Server, serving
from tiny import colour_network, tiny_bundle


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
