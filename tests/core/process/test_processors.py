"""The processors that a process may use: its affinity, and the quota of its control groups."""

import os
from pathlib import Path

import pytest

from imagenet_mds.process import processors
from imagenet_mds.process.processors import usable_processors

ALLOWED = len(os.sched_getaffinity(0))


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Where control groups are looked up, with 64 processors to be allowed on."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    monkeypatch.setattr(processors, "_GROUPS", tmp_path / "self")
    monkeypatch.setattr(processors, "_HIERARCHY", tmp_path)
    return tmp_path


def test_this_machine_has_no_more_than_the_affinity() -> None:
    assert 1 <= usable_processors() <= ALLOWED


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 64),
        ({"cpu.max": "max 100000"}, 64),
        ({"cpu.max": "400000 100000"}, 4),  # docker run --cpus 4
        ({"cpu.max": "250000 100000"}, 3),
        ({"cpu.max": "1000 100000"}, 1),
        ({"cpu.max": "9900000 100000"}, 64),
        ({"cpu.max": "nonsense"}, 64),
        ({"cpu.max": "100000 0"}, 64),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "max 100000"}, 8),
        ({"a/cpu.max": "800000 100000", "a/b/cpu.max": "200000 100000"}, 2),
    ],
)
def test_a_quota_of_any_group_above_counts(groups: Path, files: dict[str, str], expected: int) -> None:
    (groups / "self").write_text("0::/a/b\n")
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text + "\n")
    assert usable_processors() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("600000", 6)])
def test_a_quota_of_version_1_counts(groups: Path, quota: str, expected: int) -> None:
    (groups / "self").write_text("5:memory:/a\n4:cpu,cpuacct:/a\n0::/\n")
    folder = groups / "cpu" / "a"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    assert usable_processors() == expected
