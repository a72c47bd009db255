"""A run begins where another lies: what is moved, what is replaced, and what is let alone."""

from pathlib import Path

import msgspec
import pytest
from processes import program
from test_data import fill

from packshot.errors import InvalidInput
from trainer.checkpoint import RECORD, STATE, read_record, save_record
from trainer.earlier import set_aside, written
from trainer.prepare import check_apart

COMMAND = (
    "--arch", "resnet18", "--weights", "none", "--recipe", "small", "--epochs", 1,
    "--batch-size", 4, "--workers", 0, "--save-minutes", 0, "--yes",
)  # fmt: skip


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shop") / "shop"
    for part, count in (("train", 2), ("val", 1), ("test", 1)):
        for seed, label in enumerate(("mug", "shoe")):
            fill(folder / part / label, count, seed=10 * seed + len(part))
    return folder


@pytest.fixture(scope="module")
def finished(shop, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("finished") / "run"
    done = program("trainer", "--data", shop, "--run", run, *COMMAND)
    assert done.returncode == 0, done.stderr
    assert "the earlier run" not in done.stdout
    return run


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A record that has finished, and nothing else."""
    folder = tmp_path / "run"
    folder.mkdir()
    save_record(folder, read_record(finished))
    return folder


def begin_another(run: Path, like: Path, seed: int, **facts: object) -> None:
    record = msgspec.structs.replace(read_record(like), seed=seed, **facts)
    save_record(run, record)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_all_that_a_run_leaves_is_known_to_be_its_own(finished):
    assert names(finished) == {path.name for path in written(finished)}
    assert len(names(finished)) == 7


def test_a_run_takes_the_place_of_an_earlier_one_and_of_nothing_else(shop, finished, tmp_path):
    """Twice: what was moved along with the first would be gone with the second."""
    run = tmp_path / "runs"
    other = run / "other" / "checkpoint.json"
    foreign = (
        other, run / "weights-mine.safetensors", run / "data-mine.json", run / "notes.txt",
        run / "events.out.tfevents.1700000000.host.7.0", run / "previous" / "notes.txt",
    )  # fmt: skip
    for path in foreign:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    save_record(run, read_record(finished))
    for seed in (1, 2):
        done = program("trainer", "--data", shop, "--run", run, *COMMAND, "--seed", seed)
        assert done.returncode == 0, done.stderr
        assert f"the earlier run is now in {run / 'previous'}\n" in done.stdout
    assert [path.read_text() for path in foreign] == [path.name for path in foreign]
    assert (read_record(run).seed, read_record(run / "previous").seed) == (2, 1)
    assert names(run / "previous") == {path.name for path in written(run / "previous")} | {
        "notes.txt"
    }


def test_an_unfinished_run_takes_the_place_of_no_finished_one(run, finished):
    assert set_aside(run) == f"the earlier run is now in {run / 'previous'}"
    begin_another(run, finished, 1)
    (run / STATE).write_text("of a run that was interrupted")
    assert set_aside(run) == (
        f"the earlier run, which had not finished, is now in {run / 'unfinished'}: "
        f"--run {run / 'unfinished'} --resume goes on with it"
    )
    begin_another(run, finished, 2, interrupted_at=1)
    assert set_aside(run).endswith(f"which had not finished, is now in {run / 'unfinished'}")
    assert not (run / "unfinished" / STATE).exists()
    assert read_record(run / "previous").seed == 0
    # Gone on with where it is, it has finished there.
    begin_another(run / "unfinished", finished, 2)
    begin_another(run, finished, 3, finished=False)
    assert set_aside(run).endswith(f"is now in {run / 'unfinished-2'}")
    assert [read_record(run / name).seed for name in ("previous", "unfinished")] == [0, 2]


def test_a_log_alone_is_no_run(tmp_path):
    (tmp_path / "log.jsonl").write_text("no more than this")
    assert set_aside(tmp_path) == ""
    assert names(tmp_path) == {"log.jsonl"}


def test_what_was_killed_while_it_moved_a_run_goes_on(run, finished):
    """Some files have been moved already, others of the run before are still there."""
    (run / "log.jsonl").write_text("still there")
    (run / ".moving-to-previous").mkdir()
    (run / RECORD).rename(run / ".moving-to-previous" / RECORD)
    (run / "previous" / "mine").mkdir(parents=True)
    (run / "previous" / "report.html").write_text("of the run before")
    assert set_aside(run) == f"the earlier run is now in {run / 'previous'}"
    assert names(run) == {"previous"}
    assert names(run / "previous") == {RECORD, "log.jsonl", "mine"}


@pytest.mark.parametrize(
    ("data", "run", "told"),
    [
        ("photos", "photos/run", "--run .*photos/run is inside --data .*photos, where each folder"),
        ("runs/photos", "runs", "--data .*runs/photos is inside --run .*runs, which is for what"),
        ("photos", "photos", "is inside"),
        ("photos", "other/../photos/run", "is inside"),
    ],
)
def test_photographs_and_runs_do_not_lie_in_each_other(tmp_path, data, run, told):
    with pytest.raises(InvalidInput, match=told):
        check_apart(tmp_path / data, tmp_path / run)


def test_folders_beside_each_other_are_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_apart(Path("shop"), Path("shop-runs"))
    check_apart(Path("shop/photos"), Path("shop/run"))
