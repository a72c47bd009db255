"""How gRPC waits for its sockets: set before it is imported, by names that it still knows."""

import os
import subprocess
import sys

import pytest
from processes import ROOT

from packshot.load.senders import POLLING

UNKNOWN = "Unknown experiment"
SAYS_SO = """
from concurrent import futures
import os, serving, grpc
grpc.server(futures.ThreadPoolExecutor(1))
print(os.environ["GRPC_EXPERIMENTS"])
"""


def started(**more: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in POLLING}
    return subprocess.run(
        [sys.executable, "-c", SAYS_SO],
        cwd=ROOT, env=environment | more, text=True, capture_output=True, timeout=60, check=True,
    )  # fmt: skip


def test_server_and_load_tester_poll_alike_and_grpc_knows_how():
    """A gRPC that has dropped the names would only log them, and cost more CPU again."""
    told = started()
    assert {"GRPC_EXPERIMENTS": told.stdout.strip()} == POLLING
    assert UNKNOWN not in told.stderr


@pytest.mark.parametrize(("own", "known"), [("event_engine_fork", True), ("no_such_thing", False)])
def test_what_the_environment_says_counts(own, known):
    told = started(GRPC_EXPERIMENTS=own)
    assert told.stdout.strip() == own
    assert (UNKNOWN not in told.stderr) == known
