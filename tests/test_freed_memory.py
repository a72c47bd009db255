"""How many pools of memory glibc keeps, asked in a process of its own."""

import ctypes
import re
import subprocess
import sys

import pytest
from processes import ROOT

COUNT = """
import ctypes, sys, threading
from serving.freed_memory import limit_pools

if sys.argv[1:]:
    limit_pools(int(sys.argv[1]))
allocated = threading.Barrier(9)

def allocate():
    libc.malloc(1000)
    allocated.wait()

libc = ctypes.CDLL(None)
for _ in range(8):
    threading.Thread(target=allocate).start()
allocated.wait()
libc.malloc_info(0, ctypes.c_void_p.in_dll(libc, "stdout"))
libc.fflush(None)
"""


def pools(*limit: str) -> int:
    command = [sys.executable, "-c", COUNT, *limit]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return len(re.findall("<heap nr=", page))


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_as_many_pools_as_they_are_given():
    assert pools() > 2
    assert pools("2") == 2
