"""Fixtures shared by the converter's tests, and a small tree."""

from pathlib import Path

import pytest

from tests.convert.drawing import make_tree
from tests.convert.running import run_tasks_here
from tests.core.properties import load_profile

load_profile()


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes with 8 training and 2 validation images. Read-only."""
    return make_tree(tmp_path_factory.mktemp("small") / "tree", n00000001=5, n00000002=3)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run shard tasks in the test's own process."""
    monkeypatch.setattr("imagenet_mds_convert.run.run_tasks", run_tasks_here)
