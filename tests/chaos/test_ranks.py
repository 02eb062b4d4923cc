"""A run whose number of ranks changes. `make chaos` plays more."""

from pathlib import Path

import pytest

from tests.chaos.arena import arguments
from tests.chaos.ranks import EXACT, SEQUENCE, play
from tests.support.command import done
from tests.support.s3_server import Proxy

pytestmark = pytest.mark.slow  # starts whole trainings


def test_a_run_on_changing_ranks_differs_by_rounding_alone(proxy: Proxy, dataset: Path, tmp_path: Path) -> None:
    done(*arguments(dataset, tmp_path, "whole", SEQUENCE[0]), *EXACT)
    found = play(dataset, proxy, tmp_path, seed=1, whole=tmp_path / "whole")
    print(found.line())
