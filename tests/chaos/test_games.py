"""Games that together put in every fault once. `make chaos` plays others."""

from pathlib import Path

import pytest

from tests.chaos.arena import Arena, Whole, undisturbed
from tests.chaos.driver import Game
from tests.chaos.faults import FAULTS
from tests.support.metadata import metadata_service
from tests.support.s3_server import Proxy

pytestmark = pytest.mark.slow  # starts whole trainings

GAMES = {
    1: [
        "S3 503",
        "S3 denies",
        "kill in an upload",
        "checkpoint flipped",
        "spot notice",
        "kill before the record",
        "checkpoint truncated",
        "kill a worker",
        "kill after the record",
        "kill in validation",
        "kill at the last batch",
    ],
    2: [
        "S3 resets",
        "S3 stalls",
        "kill a rank",
        "kill the launcher",
        "checkpoint deleted",
        "SIGTERM",
        "kill",
        "record deleted",
        "kill at an epoch's end",
        "takeover",
        "kill pair",
    ],
}
"""The faults by the number of ranks. Fewer starts are enough where a damaged checkpoint follows a kill."""


@pytest.fixture(scope="module")
def wholes(dataset: Path, module_folder: Path) -> dict[int, Whole]:
    """The undisturbed runs."""
    return undisturbed(dataset, module_folder, GAMES)


def test_every_fault_is_played() -> None:
    assert sorted(name for names in GAMES.values() for name in names) == sorted(FAULTS)


@pytest.mark.parametrize("ranks", GAMES)
def test_a_run_that_meets_faults_ends_as_the_undisturbed_one(
    proxy: Proxy, server: int, dataset: Path, wholes: dict[int, Whole], tmp_path: Path, ranks: int
) -> None:
    with metadata_service() as metadata:
        game = Game(
            Arena(dataset, server, proxy, wholes), tmp_path, metadata, seed=1, ranks=ranks, until_done=ranks == 2
        )
        report = game.play({name: FAULTS[name] for name in GAMES[ranks]})
    # A fault is missed if the run is done before it, which a fast machine may be with the last ones.
    missed = [one.name for one in report.faults if one.outcome == "missed"]
    assert len(report.faults) - len(missed) > len(GAMES[ranks]) // 2, missed
