"""`packshot models` on real bundles."""

import json
import subprocess
import sys

import msgspec
import pytest
from fake_gpu import sidecar
from processes import ROOT
from tiny import colour_network, overwrite, tiny_bundle

from packshot import __version__
from packshot.bundle import GOLDEN, read_manifest, write_bundle
from packshot.cli import main
from packshot.golden import read_golden
from packshot.store import current_version, new_version, release, share, versions

PLAN = b"not really a plan"


@pytest.fixture
def models(store, capsys):
    """Runs `packshot models ...` on the store; gives exit status, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = main(["models", *map(str, arguments), "--models", str(store)])
        return (status, *capsys.readouterr())

    return run


def rewritten(store, **changes: object) -> None:
    """Adds a version that has the files of version 1 and another manifest."""
    model = store / "colours"
    with new_version(model) as (version, folder):
        share(["model.onnx", "golden.npz"], model / "1", folder)
        manifest = msgspec.structs.replace(
            read_manifest(model / "1"), version=version, files={}, **changes
        )
        write_bundle(folder, manifest)


def edit_manifest(folder, old: str, new: str) -> None:
    text = (folder / "manifest.json").read_text()
    assert old in text
    overwrite(folder / "manifest.json", text.replace(old, new).encode())


def test_list_shows_every_version_and_marks_the_served_one(store, models):
    tiny_bundle(store, int8=colour_network())
    tiny_bundle(store, "apples")
    release(store / "colours", 1)
    status, text, _ = models("list")
    head, *rows = [line.split() for line in text.splitlines()]
    assert status == 0
    assert head[:3] == ["MODEL", "VERSION", "CREATED"]
    assert [row[:3] for row in rows[:2]] == [
        ["apples", "1", "*"],
        ["colours", "1", "*"],
    ]
    assert rows[2][:3] == ["colours", "2", "2026-11-21T00:00:00Z"]
    assert rows[2][-4:] == ["fp32", "100.00%,", "int8", "100.00%"]
    listed = json.loads(models("list", "colours", "--json")[1])
    assert [(one["version"], one["served"]) for one in listed] == [(1, True), (2, False)]
    assert listed[0]["bytes"] == sum(
        path.stat().st_size for path in (store / "colours" / "1").iterdir()
    )
    assert listed[1]["engines"]["int8"]["accuracy"] == 1.0


def test_list_goes_on_past_what_it_cannot_read(store, models):
    tiny_bundle(store)
    overwrite(store / "colours" / "1" / "manifest.json", b"{")
    (store / "colours" / "released").write_text("9\n")
    status, text, errors = models("list")
    assert status == 1
    assert "FAULT" in text.splitlines()[1]
    assert "fp32 100.00%" in text.splitlines()[2]
    assert "*" not in text
    assert "no version of colours is served" in errors
    assert "asks for version 9" in errors


def test_show_tells_what_a_version_is(store, models):
    rewritten(store, provenance={"recipe": {"name": "fine-tune"}, "seed": 7}, min_confidence=0.4)
    status, text, _ = models("show", "colours")
    assert status == 0
    assert text.startswith("colours 2, served\n")
    for shown in ("red, green, blue", "below 0.4", "recipe.name  fine-tune", "model.onnx"):
        assert shown in text
    shown = json.loads(models("show", "colours", 1, "--json")[1])
    assert (shown["version"], shown["served"]) == (1, False)
    assert shown["manifest"]["labels"] == ["red", "green", "blue"]


def test_verify_names_every_fault(store, models):
    assert models("verify", "colours") == (
        0, "colours 1: sound; engines were not run\n", "",
    )  # fmt: skip
    folder = store / "colours" / "1"
    overwrite(folder / "labels.txt", b"red\ngreen\n")
    overwrite(folder / "model.onnx", b"?")
    (folder / "golden.npz").unlink()
    (folder / "notes.txt").write_text("?")
    status, text, _ = models("verify", "colours", 1)
    assert status == 1
    faults = text.splitlines()[1:]
    for words in (
        "labels.txt has sha256", "golden.npz is missing", "model.onnx has sha256",
        "notes.txt is not part of the bundle", "labels.txt has other labels",
    ):  # fmt: skip
        assert sum(words in fault for fault in faults) == 1, words
    assert len(faults) == 5
    (folder / "golden.npz").write_bytes(b"?")
    found = json.loads(models("verify", "colours", "--json")[1])
    assert len(found["1"]) == 6
    assert "golden samples cannot be read" in found["1"][-1]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('"model": "colours"', '"model": "shapes"', "holds version 1 of 'shapes'"),
        ('"crop": 224', '"crop": 200', "has pixels [224, 224, 3], the manifest's image spec gives"),
        ('"red",', '"red", "yellow",', "3 logits an image, the manifest 4 labels"),
        ('"labels.txt": ', '"labels": ', "has no hash of labels.txt"),
        ('"format": 1', '"format": 3', "has format 3"),
    ],
)
def test_verify_finds_a_manifest_that_does_not_fit(store, models, old, new, words):
    """It has no hash of its own; what it says must fit the files."""
    edit_manifest(store / "colours" / "1", old, new)
    status, text, _ = models("verify", "colours")
    assert status == 1
    assert words in text


def test_verify_decodes_the_golden_samples(store, models):
    """Hashes are right; the pixels of training are not what this machine decodes."""
    model = store / "colours"
    golden = read_golden((model / "1" / GOLDEN).read_bytes())
    with new_version(model) as (version, folder):
        share(["model.onnx"], model / "1", folder)
        darker = msgspec.structs.replace(golden, pixels=golden.pixels // 2)
        (folder / GOLDEN).write_bytes(darker.to_bytes())
        manifest = read_manifest(model / "1")
        write_bundle(folder, msgspec.structs.replace(manifest, version=version))
    status, text, _ = models("verify", "colours")
    assert status == 1
    head, fault = text.splitlines()
    assert head == "colours 2: 1 fault"
    assert "golden.npz: decoded golden images differ by" in fault


def test_verify_reads_the_sidecars_of_plans(store, models):
    folder = tiny_bundle(store, plans={"trt-fp16.sm90": (PLAN, sidecar(sha256="0" * 64))})
    status, text, _ = models("verify", "colours", "--all")
    assert status == 1
    assert text.startswith("colours 1: sound")
    assert (
        "model.trt-fp16.sm90.plan.json describes another plan than model.trt-fp16.sm90.plan" in text
    )
    overwrite(folder / "model.trt-fp16.sm90.plan.json", b"{")
    assert "does not describe a TensorRT plan" in models("verify", "colours")[1]


def test_release_and_rollback(store, models):
    tiny_bundle(store)
    tiny_bundle(store)
    assert models("release", "colours", 1)[:2] == (
        0, "colours: version 1 is released, in the place of 3\n",
    )  # fmt: skip
    assert models("rollback", "colours")[:2] == (
        0, "colours: version 3 is released, in the place of 1\n",
    )  # fmt: skip
    assert current_version(store / "colours") == 3


def test_a_damaged_version_is_not_released(store, models):
    tiny_bundle(store)
    overwrite(store / "colours" / "1" / "model.onnx", b"?")
    for command in (("release", "colours", 1), ("rollback", "colours")):
        status, _, errors = models(*command)
        assert status == 2
        assert "model.onnx has sha256" in errors
        assert current_version(store / "colours") == 2
    assert models("release", "colours", 1, "--no-verify")[0] == 0
    assert current_version(store / "colours") == 1


def test_prune_says_what_it_removes_and_what_that_frees(store, models):
    model = store / "colours"
    rewritten(store)  # shares two files of version 1
    tiny_bundle(store)
    tiny_bundle(store)
    freed = sum(
        path.stat().st_size
        for version in (1, 2)
        for path in (model / str(version)).iterdir()
        if (version, path.name) not in {(2, "model.onnx"), (2, "golden.npz")}  # the same files
    )
    expected = f"remove 1, 2 ({freed / 1e3:.1f} kB); 3, 4 stay\n"
    dry = models("prune", "colours", "--keep", 1, "--dry-run")
    assert dry[:2] == (0, f"colours: would {expected}")
    assert versions(model) == [1, 2, 3, 4]
    done = models("prune", "colours", "--keep", 1)
    assert done[:2] == (0, f"colours: {expected.replace('remove', 'removed')}")
    assert versions(model) == [3, 4]


def test_what_a_kept_version_shares_is_not_counted_as_freed(store, models):
    rewritten(store)
    rewritten(store)
    manifest_and_labels = sum(
        (store / "colours" / "1" / name).stat().st_size for name in ("manifest.json", "labels.txt")
    )
    text = models("prune", "colours", "--keep", 1)[1]
    assert f"removed 1 ({manifest_and_labels / 1e3:.1f} kB); 2, 3 stay" in text


@pytest.mark.parametrize("keep", ["0", "-1", "many"])
def test_prune_refuses_to_keep_nothing(store, models, keep):
    try:
        status = models("prune", "colours", "--keep", keep)[0]
    except SystemExit as refused:  # argparse's
        status = refused.code
    assert status == 2
    assert versions(store / "colours") == [1]


def test_diff_tells_what_changed(store, models):
    before = read_manifest(store / "colours" / "1")
    fp32 = before.engines["fp32"]
    worse = msgspec.structs.replace(fp32.measured, accuracy=0.9)
    rewritten(
        store,
        labels=("green", "red", "yellow"),
        temperature=1.5,
        image=msgspec.structs.replace(before.image, resize_short_side=232),
        engines={"fp32": msgspec.structs.replace(fp32, measured=worse)},
        left_out={"int8": "accuracy drop 2.0%"},
        provenance={"recipe": {"epochs": 3}, "seed": 1},
    )
    status, text, _ = models("diff", "colours", 1, 2)
    assert status == 0
    assert text.splitlines() == [
        "colours 1 -> 2",
        "  labels added: yellow",
        "  labels removed: blue",
        "  labels in another order",
        "  image resize_short_side: 256 -> 232",
        "  temperature: 1.0 -> 1.5",
        "  fp32 measured.accuracy: 1.0 -> 0.9",
        "  left out int8: none -> accuracy drop 2.0%",
        "  provenance recipe.epochs: none -> 3",
        "  provenance seed: none -> 1",
        "  files changed: labels.txt",
        "  files the same, shared on disk: golden.npz, model.onnx",
    ]
    found = json.loads(models("diff", "colours", 2, 1, "--json")[1])
    assert found["versions"] == [2, 1]
    assert found["labels"] == {"added": ["blue"], "removed": ["yellow"], "reordered": True}
    assert found["settings"] == {"temperature": [1.5, 1.0]}
    assert found["files"]["shared"] == ["golden.npz", "model.onnx"]


def test_a_label_more_is_no_other_order(store, models):
    rewritten(store, labels=("red", "yellow", "green", "blue"))
    found = json.loads(models("diff", "colours", 1, 2, "--json")[1])
    assert found["labels"] == {"added": ["yellow"], "removed": [], "reordered": False}


def test_diff_of_engines(store, models):
    tiny_bundle(store, int8=colour_network())
    assert (
        "engine int8: added\n  files added: model.int8.onnx" in models("diff", "colours", 1, 2)[1]
    )
    assert "engine int8: removed" in models("diff", "colours", 2, 1)[1]
    assert models("diff", "colours", 1, 1)[1].splitlines()[0] == "colours 1 -> 1"


def test_export_writes_the_version_that_is_served(store, models, tmp_path):
    tiny_bundle(store)
    release(store / "colours", 1)
    status, text, _ = models("export", "colours", "--format", "triton", "--out", tmp_path / "t")
    assert (status, text) == (0, f"triton: {tmp_path}/t/colours\n")
    assert (tmp_path / "t" / "colours" / "1" / "model.onnx").is_file()
    status, _, errors = models(
        "export", "colours", 2, "--format", "triton", "--out", tmp_path / "t"
    )
    assert status == 2
    assert "exists already" in errors


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("list", "shapes"), "no model 'shapes' in"),
        (("show", "colours", 7), "has no version 7; there is version 1"),
        (("verify", "shapes"), "there is colours"),
        (("release", "colours", 7), "has no version 7"),
        (("rollback", "colours"), "nothing was served before version 1"),
        (("diff", "colours", 1, 2), "has no version 2"),
    ],
)
def test_what_is_not_there_is_named(models, arguments, words):
    status, _, errors = models(*arguments)
    assert status == 2
    assert errors.startswith("packshot: ")
    assert words in errors


@pytest.mark.parametrize("verb", ["list", "show", "verify", "release", "rollback", "diff"])
def test_help_tells_what_each_word_is(verb, capsys):
    with pytest.raises(SystemExit):
        main(["models", verb, "--help"])
    words = capsys.readouterr().out.partition("positional arguments:\n")[2].partition("\n\n")[0]
    assert all(len(line.split()) > 1 for line in words.splitlines()), words


def test_the_version_of_packshot_is_told(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--version"])
    assert (ended.value.code, capsys.readouterr().out) == (0, f"packshot {__version__}\n")


def test_the_command_itself(tmp_path):
    command = [sys.executable, "-m", "packshot.cli", "models", "list", "--models", tmp_path / "no"]
    done = subprocess.run(command, cwd=ROOT, text=True, capture_output=True, check=False)
    assert done.returncode == 2
    assert "no model store at" in done.stderr


def test_the_store_of_the_server_is_that_of_the_command(store, capsys, monkeypatch):
    monkeypatch.setenv("PACKSHOT_MODELS", str(store))
    assert main(["models", "verify", "colours"]) == 0
    assert "colours" in capsys.readouterr().out
