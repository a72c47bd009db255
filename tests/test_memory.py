"""What this process may use, and what it does."""

import os
import subprocess
import sys

import pytest
from control_groups import V1, V2, ControlGroups
from processes import ROOT

from serving.memory import memory_bytes

MACHINE = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def groups(tmp_path):
    return ControlGroups(tmp_path)


@pytest.mark.parametrize(
    ("text", "bytes_"), [("max", MACHINE), ("1879048192", 1879048192), ("", MACHINE)]
)
def test_version_2(groups, text, bytes_):
    groups.member_of(V2)
    groups.tell("memory.max", text)
    assert memory_bytes(*groups.given) == bytes_


@pytest.mark.parametrize(
    ("text", "bytes_"), [("9223372036854771712", MACHINE), ("536870912", 536870912)]
)
def test_version_1(groups, text, bytes_):
    groups.member_of(V1)
    groups.tell("memory/memory.limit_in_bytes", text)
    assert memory_bytes(*groups.given) == bytes_


def test_version_2_nested(groups):
    groups.member_of("0::/system.slice/packshot.service\n")
    groups.tell("system.slice/packshot.service/memory.max", "max")
    assert memory_bytes(*groups.given) == MACHINE
    groups.tell("system.slice/memory.max", "900000000")
    assert memory_bytes(*groups.given) == 900000000
    groups.tell("system.slice/packshot.service/memory.max", "800000000")
    groups.tell("system.slice/another.service/memory.max", "500000000")
    assert memory_bytes(*groups.given) == 800000000
    groups.tell("system.slice/packshot.service/memory.high", "700000000")
    assert memory_bytes(*groups.given) == 700000000
    groups.tell("memory.max", "600000000")
    assert memory_bytes(*groups.given) == 600000000


def test_version_1_nested_and_beside_it_version_2(groups):
    groups.member_of("5:cpu,cpuacct:/\n4:memory:/docker/12ab\n0::/system.slice\n")
    groups.tell("memory/memory.limit_in_bytes", "9223372036854771712")
    groups.tell("memory/docker/memory.limit_in_bytes", "9223372036854771712")
    groups.tell("memory/docker/12ab/memory.limit_in_bytes", "536870912")
    assert memory_bytes(*groups.given) == 536870912


@pytest.mark.parametrize("lines", ["0::/kubepods/1\n", "0::/../2\n", "0::/kubepods/../2\n", ""])
def test_a_group_that_a_container_cannot_see_is_its_root(groups, lines):
    groups.member_of(lines)
    groups.tell("kubepods/memory.max", "400000000")  # of a group of that name in the container
    groups.tell("../2/memory.max", "300000000")
    groups.tell("2/memory.max", "200000000")
    groups.tell("memory.max", "500000000")
    assert memory_bytes(*groups.given) == 500000000


def test_a_group_of_version_2_by_the_name_of_a_controller_is_not_ones_own(groups):
    groups.member_of(V2)
    groups.tell("memory/memory.max", "300000000")
    assert memory_bytes(*groups.given) == MACHINE


def test_without_a_control_group_it_is_the_machines(groups):
    assert memory_bytes(*groups.given) == MACHINE


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
