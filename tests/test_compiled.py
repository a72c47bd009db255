"""Compiled models: kept whole or not at all, and never in anybody's way."""

import logging
import os
import threading
from pathlib import Path

import numpy as np
import pytest

from serving.engines.compiled import KEPT, CompiledModels


class Compiler:
    """Compiles to the bytes that it is given; counts how often."""

    def __init__(self, content: bytes) -> None:
        self.times = 0
        self._content = np.frombuffer(content, np.uint8)

    def __call__(self) -> np.ndarray:
        self.times += 1
        return self._content


def get(folder: Path, made_of: tuple[str, ...], compiler: Compiler) -> bytes:
    """Waits until it is kept."""
    content = CompiledModels(folder).get(made_of, compiler).tobytes()
    for thread in threading.enumerate():
        if thread.name == "keep-compiled":
            thread.join()
    return content


def test_what_was_compiled_is_found_by_all_that_it_depends_on(tmp_path):
    one, other = Compiler(b"one"), Compiler(b"other")
    folder = tmp_path / "not" / "there" / "yet"
    for _ in range(2):
        assert get(folder, ("a file", "2026.4", "fma"), one) == b"one"
        assert get(folder, ("a file", "2026.4", "fma", "avx2"), other) == b"other"
    assert (one.times, other.times) == (1, 1)


@pytest.mark.parametrize("damage", [b"", b"short", b"X" * 40])
def test_what_is_damaged_is_compiled_anew_and_replaced(tmp_path, caplog, damage):
    compiler = Compiler(b"content")
    get(tmp_path, ("a file",), compiler)
    (kept,) = tmp_path.iterdir()
    kept.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        assert get(tmp_path, ("a file",), compiler) == b"content"
    assert "is damaged" in caplog.text
    assert get(tmp_path, ("a file",), compiler) == b"content"
    assert compiler.times == 2


def test_a_folder_that_cannot_be_had_costs_the_time_only(tmp_path, caplog):
    (tmp_path / "taken").write_bytes(b"a file, no folder")
    compiler = Compiler(b"content")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            assert get(tmp_path / "taken", ("a file",), compiler) == b"content"
    assert compiler.times == 2
    assert "not kept" in caplog.text


def test_those_that_were_used_last_are_kept(tmp_path):
    for number in range(KEPT):
        get(tmp_path, (str(number),), Compiler(b"content"))
        for path in tmp_path.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 60))
    used = Compiler(b"content")
    get(tmp_path, ("0",), used)
    get(tmp_path, ("one more",), Compiler(b"content"))
    assert len([*tmp_path.iterdir()]) == KEPT
    evicted = Compiler(b"content")
    get(tmp_path, ("1",), evicted)
    get(tmp_path, ("0",), used)
    assert (used.times, evicted.times) == (0, 1)
