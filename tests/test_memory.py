"""What this process may use, and what it does."""

import os
import subprocess
import sys

import pytest
from processes import ROOT

from serving.memory import memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.parametrize(
    ("text", "bytes_"), [("max", MACHINE), ("1879048192", 1879048192), ("", MACHINE)]
)
def test_version_2(tmp_path, text, bytes_):
    (tmp_path / "memory.max").write_text(f"{text}\n")
    assert memory_bytes(tmp_path) == bytes_


@pytest.mark.parametrize(
    ("text", "bytes_"), [("9223372036854771712", MACHINE), ("536870912", 536870912)]
)
def test_version_1(tmp_path, text, bytes_):
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{text}\n")
    assert memory_bytes(tmp_path) == bytes_


def test_without_a_control_group_it_is_the_machines(tmp_path):
    assert memory_bytes(tmp_path) == MACHINE


SHORT = """
from serving.memory import Memory, malloced_bytes, resident_bytes

memory = Memory(resident_bytes() + 250 * 2**20)
memory.settle()
found = [memory.short]
blocks = [b"x" * 5000 for _ in range(60_000)]
found.append(memory.short)
pins = blocks[::500]  # so that nothing is given back by itself
del blocks
found += [resident_bytes() > memory.most_bytes, memory.short]
print(*found, malloced_bytes() is not None)
"""


def test_what_malloc_keeps_of_freed_memory_is_not_in_use():
    command = [sys.executable, "-c", SHORT]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "True", "False", "True"]


HELD = """
from serving.memory import Memory, malloced_bytes, resident_bytes

loading = False
memory = Memory(resident_bytes() + 250 * 2**20, loading=lambda: loading)
memory.settle()
block = b"x" * (150 * 2**20)
found = [memory.short]
loading = True
found.append(memory.short)
memory.settle_loaded()
loading = False
found.append(memory.short)
memory.settle_loaded()
found.append(memory.short)
another = b"x" * (50 * 2**20)  # there is always so much
found.append(memory.short)
third = b"x" * (50 * 2**20)
print(*found, memory.short)
"""


CACHED = """
from serving.memory import Memory, resident_bytes

cached = 0
memory = Memory(resident_bytes() + 250 * 2**20, kept=lambda: cached)
memory.settle()
block, cached = b"x" * (150 * 2**20), 150 * 2**20
found = [memory.short]
request = b"x" * (80 * 2**20)  # 0.4 of the rest is less: then it is 64 MiB
found.append(memory.short)
del block
cached = 0
print(*found, memory.short)
"""


def test_what_is_kept_for_all_requests_is_none_of_theirs():
    command = [sys.executable, "-c", CACHED]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]


def test_what_a_version_takes_that_comes_or_goes_is_not_the_requests():
    command = [sys.executable, "-c", HELD]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", "False", "False", "False", "False", "True"]
