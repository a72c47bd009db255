"""What the benchmarks count; never how long something took."""

import re

import pytest
from processes import program
from tiny import colour_network, tiny_bundle

from benchmarks.operations import operations_per_image


def test_resnet50_is_4_1_billion_multiply_adds(resnet50):
    """At 224 pixels; of 5 classes in the place of 1000, which are 2 million fewer."""
    assert operations_per_image(resnet50) / 2 == pytest.approx(4.09e9, rel=0.001)


def test_every_engine_that_runs_here_is_measured_at_every_batch(tmp_path):
    tiny_bundle(tmp_path, int8=colour_network())
    done = program("benchmarks.engines", "--models", tmp_path, "--model", "colours", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(fp32|int8) +(\d+) .*%$", done.stdout, re.MULTILINE)
    assert rows == [(name, str(1 << n)) for name in ("fp32", "int8") for n in range(6)]
