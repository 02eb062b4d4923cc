"""A few crash cycles. `make chaos CYCLES=100` plays more."""

from pathlib import Path

import pytest

from tests.chaos.cycles import play
from tests.support.s3_server import Proxy

pytestmark = pytest.mark.slow  # starts whole trainings


def test_crashes_leave_nothing_behind(proxy: Proxy, server: int, dataset: Path, tmp_path: Path) -> None:
    found = play(dataset, server, proxy, tmp_path, count=3, seed=1)
    print(found.line())
    assert found.batches
