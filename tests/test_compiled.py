"""Compiled models: kept whole or not at all, and never in anybody's way."""

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.engines import compiled
from serving.engines.compiled import DIGEST_BYTES, UNUSED_SECONDS, CompiledModels


class Runtime:
    """Compiles to the bytes that it is given, counts how often, and loads what is not foreign."""

    def __init__(self, content: bytes, foreign: bytes = b"") -> None:
        self.compiled = 0
        self._content = np.frombuffer(content, np.uint8)
        self._foreign = foreign

    def compile(self) -> np.ndarray:
        self.compiled += 1
        return self._content

    def load(self, content: np.ndarray) -> bytes:
        if content.tobytes() == self._foreign:
            raise RuntimeError("no model of mine")
        return content.tobytes()


def load(folder: Path, made_of: tuple[str, ...], runtime: Runtime) -> bytes:
    """Waits until it is kept."""
    source, *made_with = made_of
    loaded = CompiledModels(folder, source).load(tuple(made_with), runtime.compile, runtime.load)
    for thread in threading.enumerate():
        if thread.name == "keep-compiled":
            thread.join()
    return loaded


def test_what_was_compiled_is_found_by_all_that_it_depends_on(tmp_path):
    runtimes = {
        ("a file", "2026.4", "fma"): Runtime(b"one"),
        ("a file", "2026.4", "fma", "avx2"): Runtime(b"of another CPU"),
        ("another", "2026.4", "fma"): Runtime(b"of another file"),
    }
    folder = tmp_path / "not" / "there" / "yet"
    first = [load(folder, made_of, runtime) for made_of, runtime in runtimes.items()]
    assert first == [b"one", b"of another CPU", b"of another file"]
    assert [load(folder, made_of, runtime) for made_of, runtime in runtimes.items()] == first
    assert [runtime.compiled for runtime in runtimes.values()] == [1, 1, 1]


@pytest.mark.parametrize("damage", [b"", b"short", b"X" * 40])
def test_what_is_damaged_is_compiled_anew_and_replaced(tmp_path, caplog, damage):
    runtime = Runtime(b"content")
    load(tmp_path, ("a file",), runtime)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert load(tmp_path, ("a file",), runtime) == b"content"
    assert "is damaged" in caplog.text
    assert load(tmp_path, ("a file",), runtime) == b"content"
    assert runtime.compiled == 2


def test_what_cannot_be_loaded_is_compiled_anew_and_replaced(tmp_path, caplog):
    load(tmp_path, ("a file",), Runtime(b"of an older runtime"))
    runtime = Runtime(b"content", foreign=b"of an older runtime")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert load(tmp_path, ("a file",), runtime) == b"content"
    assert "no model of mine" in caplog.text
    assert runtime.compiled == 1


def test_what_no_runtime_can_load_is_told_to_the_caller_and_not_kept(tmp_path):
    with pytest.raises(RuntimeError, match="no model of mine"):
        load(tmp_path, ("a file",), Runtime(b"content", foreign=b"content"))
    assert not [*tmp_path.iterdir()]


def test_a_folder_that_cannot_be_had_costs_the_time_only(tmp_path, caplog):
    (tmp_path / "taken").write_bytes(b"a file, no folder")
    runtime = Runtime(b"content")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert load(tmp_path / "taken", ("a file",), runtime) == b"content"
    assert runtime.compiled == 2
    assert "not kept" in caplog.text


def age(folder: Path, seconds: float) -> None:
    for path in folder.iterdir():
        os.utime(path, (path.stat().st_atime, path.stat().st_mtime - seconds))


def test_those_used_last_stay_where_all_are_too_large(tmp_path, monkeypatch):
    monkeypatch.setattr(compiled, "MOST_BYTES", 3 * len(b"content" + bytes(DIGEST_BYTES)))
    for name in ("0", "1", "2"):
        load(tmp_path, (name,), Runtime(b"content"))
        age(tmp_path, 60)
    assert len([*tmp_path.iterdir()]) == 3
    used = Runtime(b"content")
    load(tmp_path, ("0",), used)
    load(tmp_path, ("one more",), Runtime(b"content"))
    assert len([*tmp_path.iterdir()]) == 3
    load(tmp_path, ("0",), used)
    given_up = Runtime(b"content")
    load(tmp_path, ("1",), given_up)
    assert (used.compiled, given_up.compiled) == (0, 1)


def test_what_nobody_used_for_long_goes(tmp_path):
    load(tmp_path, ("of an old version",), Runtime(b"content"))
    age(tmp_path, UNUSED_SECONDS + 60)
    load(tmp_path, ("of a new one",), Runtime(b"content"))
    assert len([*tmp_path.iterdir()]) == 1
