"""What glibc keeps of freed memory, asked in processes of their own."""

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


TIDY = """
import asyncio
from serving import tidying
from serving.memory import Memory, resident_bytes

tidying.LOOK_SECONDS = 0.001
busy = True

async def main():
    global busy
    quiet = lambda: not busy
    task = asyncio.create_task(tidying.keep_tidy(quiet, quiet, Memory(1 << 50)))
    await asyncio.sleep(0)  # it has seen how much it is now
    before = resident_bytes()
    blocks = [bytes(5000) for _ in range(60_000)]
    pins = blocks[::500]  # so that nothing is given back by itself
    del blocks
    after = resident_bytes()
    for _ in range(50):
        await asyncio.sleep(0.001)
    kept = resident_bytes()
    busy = False
    while resident_bytes() > before + 100 * 2**20:
        await asyncio.sleep(0.001)
    print(after - before > 200 * 2**20, kept - before > 200 * 2**20, len(pins), task.done())

asyncio.run(main())
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="not glibc")
def test_what_large_requests_have_left_is_given_back_once_it_is_quiet():
    command = [sys.executable, "-c", TIDY]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.split() == ["True", "True", "120", "False"]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="not glibc")
def test_threads_share_as_many_pools_as_they_are_given():
    assert pools() > 2
    assert pools("2") == 2
