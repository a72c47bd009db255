"""Adding engines to a small bundle: what was measured of those that are there is kept."""

from pathlib import Path

import pytest
from tiny import add_openvino, change_manifest, colour_network, tiny_bundle

from exporters import making
from exporters.__main__ import main, not_served
from exporters.command_line import parse_options
from exporters.export import export
from packshot.bundle import read_manifest
from packshot.errors import InvalidInput
from packshot.machine import cpu_flags
from packshot.store import release, versions
from serving.engines.openvino import BF16, INSTRUCTIONS, INT8


@pytest.fixture
def store(tmp_path):
    """Version 1 has fp32, int8 and openvino-bf16."""
    folder = add_openvino(tiny_bundle(tmp_path / "models", int8=colour_network()))
    (folder / "report.html").write_text("<body></body>")
    engines = dict(read_manifest(folder).engines)
    engines.pop(INT8)
    change_manifest(folder, engines=engines)
    return tmp_path / "models"


@pytest.fixture
def added(store, monkeypatch, capsys):
    """Asks for engines; gives the exit status, output and errors."""

    def run(engines: str, *options: str) -> tuple[int, str, str]:
        arguments = ["add-engine", "--models", store, "--model", "colours", "--engines", engines]
        monkeypatch.setattr("sys.argv", ["exporters", *map(str, arguments), *options])
        return (main(), *capsys.readouterr())

    monkeypatch.setattr("exporters.__main__.interrupt_on_sigterm", lambda: None)
    monkeypatch.setattr(making, "check_openvino", lambda _name: "2026.4")
    return run


def test_what_is_there_already_is_not_added_again(store, added):
    status, _, errors = added(BF16, "--require", BF16)
    assert status == 1
    assert f"no engine was added: {BF16}: version 1 has it, measured on" in errors
    assert versions(store / "colours") == [1]


@pytest.mark.skipif(INSTRUCTIONS[INT8] not in cpu_flags(), reason="this CPU has no VNNI")
def test_what_was_measured_is_kept_beside_what_is_added(store, added):
    status, output, _ = added(f"{BF16},{INT8}", "--gate-int8-agreement", "0")
    assert status == 0
    assert f"{BF16} stays as it is: version 1 has it" in output
    before, after = (read_manifest(store / "colours" / number) for number in "12")
    assert after.engines.keys() - before.engines.keys() == {INT8}
    assert after.engines[BF16] == before.engines[BF16]
    assert after.engines[BF16].measured.accuracy is not None
    assert after.engines[INT8].measured.accuracy is None


@pytest.mark.skipif(INSTRUCTIONS[INT8] not in cpu_flags(), reason="this CPU has no VNNI")
def test_a_version_that_waits_for_its_release_says_so(store, added):
    options = (INT8, "--gate-int8-agreement", "0")
    assert added(*options)[1].endswith(f"bundle in {store}/colours/2\n")  # the highest is served
    release(store / "colours", 1)
    remedy = "`packshot models release colours {} --models " + f"{store}`\n"
    told = f"colours/3\nversion 1 is released, so 3 is not served: {remedy.format(3)}"
    assert added(*options)[1].endswith(told)
    (store / "colours" / "released").write_text("9\n")
    told = f"asks for version 9; there are versions 1, 2, 3, 4): {remedy.format(4)}"
    assert added(*options, "--version", "1")[1].endswith(told)


def test_a_store_that_takes_no_version_is_told_before_the_run_is_read(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    missing = ["--run", str(tmp_path / "no run")]
    with pytest.raises(InvalidInput, match=f"{tmp_path}/file is no folder: name another store"):
        export(parse_options([*missing, "--models", str(tmp_path / "file" / "models")]))
    monkeypatch.setattr("os.access", lambda folder, _mode: folder != tmp_path)  # root may write
    with pytest.raises(InvalidInput, match=f"cannot write to {tmp_path}: make it writable"):
        export(parse_options([*missing, "--models", str(tmp_path / "models")]))
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_default_store_needs_not_be_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        folder = tiny_bundle(Path("models"))
    release(folder.parent, 1)
    assert not_served(folder).endswith("so 2 is not served: `packshot models release colours 2`")
