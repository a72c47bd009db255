"""Where models come from: a version by itself is served as one of a store is."""

import shutil
import signal

import pytest
from processes import TIMEOUT, program, serving
from tiny import PURE, jpeg, overwrite, tiny_bundle

from packshot import Client

RED = jpeg(PURE["red"])


@pytest.fixture
def version(tmp_path):
    """The third version of "colours", in a folder whose name and parent say nothing."""
    for _ in range(3):
        folder = tiny_bundle(tmp_path / "store")
    alone = tmp_path / "mnt" / "models"
    shutil.copytree(folder, alone)
    return alone


@pytest.mark.parametrize("named", [(), ("--model", "colours")])
def test_a_version_by_itself_is_served(version, named):
    with serving("--models", version, "--reload-seconds", 0.01, *named) as server:
        with Client(server.target, timeout_seconds=TIMEOUT) as client:
            [result] = client.classify([RED])
            assert (result.label, result.model, result.version) == ("red", "colours", 3)
            # To look again, on a signal too, changes nothing.
            server.process.send_signal(signal.SIGHUP)
            assert client.classify([RED])[0].version == 3
        assert server.metric("packshot_reloads_total") == 0
        assert server.log.count(f"loading {version}") == 1
        assert server.stop() == 0


def test_another_model_than_the_one_that_is_there_is_refused(version):
    done = program("serving", "--models", version, "--model", "shoes", "--check")
    assert done.returncode == 1
    assert f"no model 'shoes' in {version}, which is a version of 'colours'" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_version_by_itself_is_proved_like_any(version):
    overwrite(version / "model.onnx", b"not what the manifest says")
    done = program("serving", "--models", version, "--check")
    assert done.returncode == 1
    assert "model.onnx has sha256" in done.stderr


def test_a_version_by_itself_without_a_readable_manifest_is_named(version):
    overwrite(version / "manifest.json", b"{")
    done = program("serving", "--models", version, "--check")
    assert done.returncode == 1
    assert str(version / "manifest.json") in done.stderr
    assert "Traceback" not in done.stderr
