"""Bundles and their store: whole or not there, right or refused."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from processes import ROOT
from tiny import tiny_bundle

from packshot.atomic import whole_folder, write_whole
from packshot.bundle import open_bundle
from packshot.errors import DamagedFile, NotFound
from packshot.store import current_version, model_names, new_version, release, versions


def test_a_bundle_opens_with_all_its_parts(store):
    bundle = open_bundle(store / "colours" / "1")
    assert bundle.manifest.labels == ("red", "green", "blue")
    assert (bundle.folder / "labels.txt").read_text() == "red\ngreen\nblue\n"
    assert bundle.engine_path("fp32").is_file()
    assert len(bundle.golden().encoded) == 3


@pytest.mark.parametrize("file", ["model.onnx", "golden.npz", "labels.txt"])
def test_one_changed_byte_is_found(store, file):
    path = store / "colours" / "1" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFile, match=file):
        open_bundle(path.parent)


def test_missing_parts_are_named(store):
    folder = store / "colours" / "1"
    (folder / "golden.npz").unlink()
    with pytest.raises(DamagedFile, match=r"golden\.npz is missing"):
        open_bundle(folder)
    (folder / "manifest.json").write_text('{"format": 1}')
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        open_bundle(folder)
    with pytest.raises(NotFound):
        open_bundle(folder / "nowhere")


def test_an_unknown_field_or_format_is_refused(store):
    path = store / "colours" / "1" / "manifest.json"
    text = path.read_text()
    path.write_text(text.replace('"format": 1', '"format": 2'))
    with pytest.raises(DamagedFile, match="format 2"):
        open_bundle(path.parent)
    path.write_text(text.replace('"crop": 224', '"crop": 224, "sharpen": true'))
    with pytest.raises(DamagedFile, match="sharpen"):
        open_bundle(path.parent)


def test_versions_count_up_and_the_highest_is_served(store):
    assert current_version(store / "colours") == 1
    tiny_bundle(store)
    assert versions(store / "colours") == [1, 2]
    assert current_version(store / "colours") == 2
    assert model_names(store) == ["colours"]


def test_release_rolls_back(store):
    tiny_bundle(store)
    release(store / "colours", 1)
    assert current_version(store / "colours") == 1
    with pytest.raises(NotFound, match=r"no version 7; there are \[1, 2\]"):
        release(store / "colours", 7)
    (store / "colours" / "released").write_text("newest\n")
    with pytest.raises(DamagedFile, match="'newest'"):
        current_version(store / "colours")
    (store / "colours" / "released").write_text("9\n")
    with pytest.raises(NotFound, match="asks for version 9"):
        current_version(store / "colours")


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match="make export"):
        model_names(tmp_path / "models")
    with pytest.raises(NotFound, match="make export"):
        current_version(tmp_path)


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fail_halfway() -> None:
        with new_version(tmp_path / "m") as (_, folder):
            (folder / "model.onnx").write_bytes(b"half")
            raise RuntimeError("out of ideas")

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert list((tmp_path / "m").iterdir()) == []


def test_a_killed_writer_leaves_no_version(tmp_path):
    script = (
        "import os, pathlib, signal, sys\n"
        "from packshot.store import new_version\n"
        "with new_version(pathlib.Path(sys.argv[1])) as (_, folder):\n"
        "    (folder / 'model.onnx').write_bytes(b'half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.run([sys.executable, "-c", script, tmp_path / "m"], cwd=ROOT, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert len(list((tmp_path / "m").iterdir())) == 1, "its leftover, hidden"
    assert versions(tmp_path / "m") == []
    with new_version(tmp_path / "m") as (version, _):
        assert version == 1


def test_two_writers_do_not_mix(tmp_path):
    def second_writer() -> None:
        with whole_folder(tmp_path / "1") as folder:
            (folder / "b").write_text("second")
            with whole_folder(tmp_path / "1") as other:
                (other / "a").write_text("first")

    with pytest.raises(FileExistsError, match="exists already"):
        second_writer()
    assert [path.name for path in (tmp_path / "1").iterdir()] == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == ["1"]


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "released"
    write_whole(path, b"1\n")
    write_whole(path, b"2\n")
    assert path.read_bytes() == b"2\n"
    assert [p.name for p in tmp_path.iterdir()] == ["released"]


def test_a_full_disk_keeps_the_old_file(tmp_path):
    script = (
        "import pathlib, resource, sys\n"
        "from packshot.atomic import write_whole\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "write_whole(pathlib.Path(sys.argv[1]), bytes(5000))\n"
    )
    target = Path(tmp_path, "weights")
    target.write_bytes(b"old")
    failed = subprocess.run(
        [sys.executable, "-c", script, target], cwd=ROOT, check=False, capture_output=True
    )
    assert failed.returncode == 1
    assert b"OSError" in failed.stderr
    assert target.read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["weights"]
