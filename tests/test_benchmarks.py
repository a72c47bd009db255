"""What the benchmarks count; never how long something took."""

import re

import numpy as np
import pytest
from PIL import Image
from processes import program
from tiny import colour_network, tiny_bundle

from benchmarks.operations import operations_per_image
from packshot.image import ImageSpec
from trainer.command_line import parse_options
from trainer.data import load_split


def test_resnet50_is_4_1_billion_multiply_adds(resnet50):
    """At 224 pixels; of 5 classes in the place of 1000, which are 2 million fewer."""
    assert operations_per_image(resnet50) / 2 == pytest.approx(4.09e9, rel=0.001)


def test_every_engine_that_runs_here_is_measured_at_every_batch(tmp_path):
    tiny_bundle(tmp_path, int8=colour_network())
    done = program("benchmarks.engines", "--models", tmp_path, "--model", "colours", "--rounds", 1)
    assert done.returncode == 0, done.stderr
    rows = re.findall(r"^(fp32|int8) +(\d+) .*%$", done.stdout, re.MULTILINE)
    assert rows == [(name, str(1 << n)) for name in ("fp32", "int8") for n in range(6)]


def test_the_digits_are_written_as_they_are_and_none_is_a_copy(tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn is in the extra dev")
    from benchmarks.digits import write_digits

    assert write_digits(tmp_path) == 1797
    with Image.open(tmp_path / "0" / "0000.png") as first:
        assert first.size == (8, 8)
        levels = np.asarray(first, np.float64) * 16 / 255
    assert levels[0].round().tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    split = load_split(parse_options(["--data", str(tmp_path)]), ImageSpec())
    assert split.labels == tuple("0123456789")
    assert (len(split.train), len(split.val), len(split.test)) == (1439, 179, 179)
    assert split.duplicates.groups == ()
