"""Bundles and their store: whole or not there, right or refused."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from processes import ROOT
from tiny import change_manifest, overwrite, tiny_bundle

from packshot.atomic import remove_folder, whole_folder, write_whole
from packshot.bundle import open_bundle
from packshot.errors import DamagedFile, InvalidInput, NotFound
from packshot.store import (
    MAX_VERSION,
    current_version,
    model_names,
    new_version,
    previous_version,
    prunable,
    prune,
    release,
    remove_version,
    rollback,
    share,
    versions,
)


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
    overwrite(path, content)
    with pytest.raises(DamagedFile, match=file):
        open_bundle(path.parent)


def test_missing_parts_are_named(store):
    folder = store / "colours" / "1"
    (folder / "golden.npz").unlink()
    with pytest.raises(DamagedFile, match=r"golden\.npz is missing"):
        open_bundle(folder)
    overwrite(folder / "manifest.json", b'{"format": 1}')
    with pytest.raises(DamagedFile, match=r"manifest\.json"):
        open_bundle(folder)
    with pytest.raises(NotFound):
        open_bundle(folder / "nowhere")


def test_an_unknown_field_or_format_is_refused(store):
    path = store / "colours" / "1" / "manifest.json"
    text = path.read_text()
    overwrite(path, text.replace('"format": 1', '"format": 2').encode())
    with pytest.raises(DamagedFile, match="format 2"):
        open_bundle(path.parent)
    overwrite(path, text.replace('"crop": 224', '"crop": 224, "sharpen": true').encode())
    with pytest.raises(DamagedFile, match="sharpen"):
        open_bundle(path.parent)


def test_versions_count_up_and_the_highest_is_served(store):
    assert current_version(store / "colours") == 1
    tiny_bundle(store)
    assert versions(store / "colours") == [1, 2]
    assert current_version(store / "colours") == 2


def test_the_root_of_a_volume_is_a_store(store):
    (store / "lost+found" / "1").mkdir(parents=True)
    assert model_names(store) == ["colours"]


def test_release_rolls_back(store):
    tiny_bundle(store)
    release(store / "colours", 1)
    assert current_version(store / "colours") == 1
    with pytest.raises(NotFound, match=r"no version 7; there are versions 1, 2"):
        release(store / "colours", 7)
    (store / "colours" / "released").write_text("newest\n")
    with pytest.raises(DamagedFile, match="'newest'"):
        current_version(store / "colours")
    (store / "colours" / "released").write_text("9\n")
    with pytest.raises(NotFound, match="asks for version 9"):
        current_version(store / "colours")


def test_a_number_too_large_for_answers_is_no_version(store):
    model = store / "colours"
    (model / str(MAX_VERSION + 1)).mkdir()
    (model / "20261122205140123456").mkdir()
    assert (versions(model), current_version(model)) == ([1], 1)
    tiny_bundle(store)
    assert versions(model) == [1, 2]


@pytest.mark.parametrize("number", [0, MAX_VERSION + 1, 20261122205140123456])
def test_a_manifest_whose_version_cannot_be_one_is_damaged(store, number):
    folder = change_manifest(store / "colours" / "1", version=number)
    with pytest.raises(DamagedFile, match=r"manifest\.json is not .*\$\.version"):
        open_bundle(folder)


def test_after_the_highest_number_none_is_written(tmp_path):
    model = tmp_path / "m"
    (model / str(MAX_VERSION)).mkdir(parents=True)
    assert versions(model) == [MAX_VERSION]
    with pytest.raises(InvalidInput, match=f"{MAX_VERSION}, the highest"), new_version(model):
        pass
    assert [path.name for path in model.iterdir()] == [str(MAX_VERSION)]


@pytest.mark.parametrize(
    "number", [str(MAX_VERSION + 1), "9" * 5000], ids=["one too large", "5000 digits"]
)
def test_a_release_of_a_number_too_large_is_damage_that_a_release_repairs(tmp_path, number):
    model = written(tmp_path / "m", 2)
    (model / "released").write_text(number)
    (model / "history").write_text(f"{number}\n2\n")
    with pytest.raises(DamagedFile, match=r"released holds '9\d+.*; there are .*: rel") as found:
        current_version(model)
    assert len(str(found.value)) < 400
    release(model, 1)
    assert (current_version(model), previous_version(model)) == (1, 2)


def test_a_release_that_is_a_link_to_nothing_is_damage_that_a_release_repairs(tmp_path):
    model = written(tmp_path / "m", 2)
    chosen = tmp_path / "chosen"
    (model / "released").symlink_to(chosen)
    with pytest.raises(DamagedFile, match=f"released is a link to {chosen}, which is not there"):
        current_version(model)
    with pytest.raises(DamagedFile, match="is a link to"):
        prune(model, keep=1)
    chosen.write_text("1\n")
    assert current_version(model) == 1
    chosen.unlink()
    release(model, 1)
    assert current_version(model) == 1


def test_an_empty_store_says_what_to_do(tmp_path):
    with pytest.raises(NotFound, match="make export"):
        model_names(tmp_path / "models")
    with pytest.raises(NotFound, match="make export"):
        current_version(tmp_path)


def fail_halfway(model: Path, *, others: int = 0) -> None:
    """An error in a writer, beside which others have written so many versions."""
    with suppress(RuntimeError), new_version(model) as (_, folder):
        (folder / "model.onnx").write_bytes(b"half")
        written(model, others)
        raise RuntimeError("out of ideas")


def test_an_error_while_writing_leaves_nothing(tmp_path):
    fail_halfway(tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
    fail_halfway(written(tmp_path / "new", 1))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["1"]
    (tmp_path / "empty").mkdir()
    fail_halfway(tmp_path / "empty")
    assert (tmp_path / "empty").is_dir()


def test_an_error_in_the_first_writer_leaves_what_another_wrote(tmp_path):
    fail_halfway(tmp_path / "new", others=1)
    assert versions(tmp_path / "new") == [2]


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
    assert all(path.name.startswith(".") for path in (tmp_path / "m").iterdir())
    assert versions(tmp_path / "m") == []
    with new_version(tmp_path / "m") as (version, _):
        assert version == 2, "the number of the killed one stays unused"


def test_what_a_killed_writer_left_is_gone_after_a_day(tmp_path):
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / ".claimed-1").touch()
    (folder / ".unfinished-1-x").mkdir()
    (folder / ".removed-7-x").mkdir()
    young = folder / ".claimed-2"
    young.touch()
    for leftover in folder.iterdir():
        if leftover != young:
            os.utime(leftover, (0, 0))
    with new_version(folder) as (version, _):
        assert version == 1
    assert sorted(path.name for path in folder.iterdir()) == [".claimed-2", "1"]


WRITER = (
    "import pathlib, sys\n"
    "from packshot.store import new_version\n"
    "with new_version(pathlib.Path(sys.argv[1])) as (version, folder):\n"
    "    print(version, flush=True)\n"
    "    sys.stdin.readline()\n"
    "    (folder / 'mine').write_text(str(version))\n"
)


def test_programs_that_write_at_once_get_numbers_of_their_own(tmp_path):
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, tmp_path / "m"],
            cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )
        for _ in range(3)
    ]  # fmt: skip
    numbers = [int(writer.stdout.readline()) for writer in writers]
    assert sorted(numbers) == [1, 2, 3]
    for writer in reversed(writers):
        writer.communicate("go on\n")
        assert writer.returncode == 0
    assert versions(tmp_path / "m") == [1, 2, 3]
    for number in numbers:
        assert (tmp_path / "m" / str(number) / "mine").read_text() == str(number)
    assert not list((tmp_path / "m").glob(".*"))


def test_many_writers_leave_no_gap(tmp_path):
    together = threading.Barrier(6)

    def write(writer: int) -> None:
        together.wait()
        for _ in range(5):
            with new_version(tmp_path / "m") as (version, folder):
                (folder / "mine").write_text(str(version))

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(write, range(6)))
    assert versions(tmp_path / "m") == list(range(1, 31))
    for version in range(1, 31):
        assert (tmp_path / "m" / str(version) / "mine").read_text() == str(version)


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


def written(model: Path, count: int) -> Path:
    """A model with so many versions of one file each."""
    for _ in range(count):
        with new_version(model) as (version, folder):
            (folder / "model.onnx").write_bytes(bytes([version]))
    return model


def test_files_of_a_version_are_read_only(tmp_path):
    folder = written(tmp_path / "m", 1) / "1"
    assert stat.S_IMODE((folder / "model.onnx").stat().st_mode) == 0o444
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755


def test_an_unchanged_file_is_shared(tmp_path):
    model = written(tmp_path / "m", 1)
    with new_version(model) as (_, folder):
        share(["model.onnx"], model / "1", folder)
    assert (model / "1" / "model.onnx").samefile(model / "2" / "model.onnx")
    prune(model, keep=1)
    assert (model / "2" / "model.onnx").read_bytes() == b"\x01"


def test_a_file_that_can_be_written_is_copied(tmp_path):
    model = written(tmp_path / "m", 1)
    original = model / "1" / "model.onnx"
    original.chmod(0o644)
    with new_version(model) as (_, folder):
        share(["model.onnx"], model / "1", folder)
    original.write_bytes(b"changed")
    assert (model / "2" / "model.onnx").read_bytes() == b"\x01"
    assert stat.S_IMODE((model / "2" / "model.onnx").stat().st_mode) == 0o444


MEMORY = Path("/dev/shm")


@pytest.mark.skipif(not MEMORY.is_dir(), reason="no second file system to be had")
def test_on_another_file_system_a_file_is_copied(tmp_path):
    model = written(tmp_path / "m", 1)
    with tempfile.TemporaryDirectory(dir=MEMORY) as elsewhere:
        share(["model.onnx"], model / "1", Path(elsewhere))
        assert Path(elsewhere, "model.onnx").read_bytes() == b"\x01"


def test_a_file_that_is_missing_or_there_already_is_not_shared(tmp_path):
    model = written(tmp_path / "m", 2)
    with pytest.raises(FileNotFoundError, match="plan"):
        share(["model.plan"], model / "1", tmp_path)
    with pytest.raises(FileExistsError):
        share(["model.onnx"], model / "1", model / "2")


def test_rollback_goes_back_through_the_releases(tmp_path):
    model = written(tmp_path / "m", 5)
    for version in (2, 4, 3):
        release(model, version)
    assert (model / "history").read_text() == "5\n2\n4\n3\n"
    assert [rollback(model) for _ in range(3)] == [4, 2, 5]
    assert current_version(model) == 5
    assert rollback(model) == 4, "no release before: the highest below"


def test_rollback_without_a_release_goes_to_the_version_below(tmp_path):
    model = written(tmp_path / "m", 2)
    assert previous_version(model) == 1
    assert rollback(model) == current_version(model) == 1
    with pytest.raises(NotFound, match="nothing was served before version 1"):
        rollback(model)
    release(model, 2)
    assert rollback(model) == 1


def test_rollback_knows_of_what_was_released_by_hand(tmp_path):
    model = written(tmp_path / "m", 4)
    release(model, 1)
    release(model, 2)
    (model / "released").write_text("4\n")
    assert rollback(model) == 2
    (model / "released").unlink()  # from now on the highest is served
    assert rollback(model) == 3


def test_rollback_survives_a_release_that_stopped_half_way(tmp_path):
    """Between its two files: `released` is written first."""
    model = written(tmp_path / "m", 3)
    release(model, 1)
    history = (model / "history").read_bytes()
    release(model, 2)
    (model / "history").write_bytes(history)
    assert rollback(model) == 1
    (model / "history").write_bytes(b"\xff")
    assert previous_version(model) is None


def test_a_release_repairs_what_is_damaged(tmp_path):
    model = written(tmp_path / "m", 2)
    (model / "released").write_text("newest\n")
    release(model, 1)
    assert current_version(model) == 1


def test_prune_keeps_the_newest_what_is_served_and_what_was_before(tmp_path):
    model = written(tmp_path / "m", 7)
    release(model, 2)
    release(model, 4)
    assert prunable(model, keep=2) == [1, 3, 5]
    assert versions(model) == list(range(1, 8)), "asking removes nothing"
    assert prune(model, keep=2) == [1, 3, 5]
    assert versions(model) == [2, 4, 6, 7]
    assert rollback(model) == 2
    assert not list(model.glob(".*"))
    with pytest.raises(InvalidInput, match="keep is 0"):
        prune(model, keep=0)


def test_prune_without_knowing_what_is_served_removes_nothing(tmp_path):
    model = written(tmp_path / "m", 3)
    (model / "released").write_text("9\n")
    with pytest.raises(NotFound, match="asks for version 9"):
        prune(model, keep=1)
    assert versions(model) == [1, 2, 3]


def test_a_version_released_while_it_is_pruned_stays_whole(tmp_path):
    model = written(tmp_path / "m", 3)
    release(model, 3)
    asked = []

    def released_now() -> bool:
        asked.append((model / "1").exists())
        return True

    assert not remove_folder(model / "1", unless=released_now)
    assert asked == [False], "hidden when asked"
    assert (model / "1" / "model.onnx").read_bytes() == b"\x01"
    assert not remove_version(model, 3)
    assert versions(model) == [1, 2, 3]
    assert remove_version(model, 1)
    assert not remove_version(model, 1), "another was faster"
    assert not list(model.glob(".*"))


@pytest.mark.parametrize("released", [1, 9], ids=["the first to go", "the last to go"])
def test_release_and_prune_at_once_leave_something_to_serve(tmp_path, released):
    together = threading.Barrier(2)

    def release_one() -> None:
        together.wait()
        with suppress(NotFound):  # prune was faster
            release(model, released)

    def prune_all() -> None:
        together.wait()
        prune(model, keep=1)

    for number in range(20):
        model = written(tmp_path / str(number), 10)
        with ThreadPoolExecutor(2) as pool:
            for done in [pool.submit(release_one), pool.submit(prune_all)]:
                done.result()
        assert current_version(model) in {released, 10}
