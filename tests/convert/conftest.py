"""Settings of the tests of the converter, and a small tree."""

from pathlib import Path

import pytest

from tests.convert.drawing import make_tree
from tests.convert.running import run_tasks_here
from tests.core.properties import load_profile

load_profile()


@pytest.fixture(scope="session")
def small_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes, 8 images to train on, 2 to validate. Tests read it."""
    return make_tree(tmp_path_factory.mktemp("small") / "tree", n00000001=5, n00000002=3)


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shard tasks are done in the process of the test."""
    monkeypatch.setattr("imagenet_mds_convert.run.run_tasks", run_tasks_here)
