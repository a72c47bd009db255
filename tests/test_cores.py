"""Cores from the control group, as version 2 and version 1 tell of them."""

import os

import pytest

from packshot.cores import available_cores, cpu_quota

HERE = len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("text", "quota"),
    [
        ("max 100000", None),
        ("150000 100000", 1.5),
        ("50000 100000", 0.5),
        ("", None),
        ("1 0", None),
    ],
)
def test_version_2(tmp_path, text, quota):
    (tmp_path / "cpu.max").write_text(f"{text}\n")
    assert cpu_quota(tmp_path) == quota


@pytest.mark.parametrize(
    ("allowed", "period", "quota"), [("-1", "100000", None), ("200000", "100000", 2.0)]
)
def test_version_1(tmp_path, allowed, period, quota):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{allowed}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text(f"{period}\n")
    assert cpu_quota(tmp_path) == quota


def test_what_cannot_be_read_limits_nothing(tmp_path):
    (tmp_path / "cpu.max").mkdir()
    assert cpu_quota(tmp_path) is None
    assert available_cores(tmp_path) == HERE


def test_a_part_of_a_core_counts_as_one_and_never_more_than_there_are(tmp_path):
    for text, cores in (("10000 100000", 1), ("99900000 100000", HERE)):
        (tmp_path / "cpu.max").write_text(text)
        assert available_cores(tmp_path) == cores
