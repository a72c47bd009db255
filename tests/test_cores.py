"""Cores from the control group, as version 2 and version 1 tell of them."""

import os

import pytest
from control_groups import V1, V2, ControlGroups

from packshot.cores import available_cores, cpu_quota

HERE = len(os.sched_getaffinity(0))


@pytest.fixture
def groups(tmp_path):
    return ControlGroups(tmp_path)


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
def test_version_2(groups, text, quota):
    groups.member_of(V2)
    groups.tell("cpu.max", text)
    assert cpu_quota(*groups.given) == quota


@pytest.mark.parametrize(
    ("allowed", "period", "quota"), [("-1", "100000", None), ("200000", "100000", 2.0)]
)
def test_version_1(groups, allowed, period, quota):
    groups.member_of(V1)
    groups.tell("cpu/cpu.cfs_quota_us", allowed)
    groups.tell("cpu/cpu.cfs_period_us", period)
    assert cpu_quota(*groups.given) == quota


def test_version_2_nested(groups):
    groups.member_of("0::/system.slice/packshot.service\n")
    groups.tell("system.slice/packshot.service/cpu.max", "max 100000")
    assert cpu_quota(*groups.given) is None
    groups.tell("system.slice/cpu.max", "300000 100000")
    assert cpu_quota(*groups.given) == 3
    groups.tell("system.slice/packshot.service/cpu.max", "150000 100000")
    assert cpu_quota(*groups.given) == 1.5
    groups.tell("cpu.max", "100000 100000")
    assert cpu_quota(*groups.given) == 1


def test_version_1_nested(groups):
    groups.member_of("6:memory:/\n5:cpu,cpuacct:/docker/12ab\n")
    for folder, allowed in (("cpu", "-1"), ("cpu/docker", "-1"), ("cpu/docker/12ab", "50000")):
        groups.tell(f"{folder}/cpu.cfs_quota_us", allowed)
        groups.tell(f"{folder}/cpu.cfs_period_us", "100000")
    assert cpu_quota(*groups.given) == 0.5


def test_what_cannot_be_read_limits_nothing(groups):
    groups.tell("cpu.max/a-folder", "")
    assert cpu_quota(*groups.given) is None
    assert available_cores(*groups.given) == HERE


def test_a_part_of_a_core_counts_as_one_and_never_more_than_there_are(groups):
    for text, cores in (("10000 100000", 1), ("99900000 100000", HERE)):
        groups.tell("cpu.max", text)
        assert available_cores(*groups.given) == cores
