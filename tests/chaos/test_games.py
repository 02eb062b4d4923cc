"""Games that together put in every fault once. `make chaos` plays others."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.chaos.arena import Arena, Whole, put_dataset, undisturbed
from tests.chaos.driver import Game
from tests.chaos.faults import FAULTS
from tests.support.metadata import metadata_service
from tests.support.s3_server import Proxy

pytestmark = pytest.mark.slow  # starts whole trainings


@dataclass(frozen=True)
class Plan:
    """A game: on how many ranks, which faults in which order, and how the run is started."""

    ranks: int
    faults: tuple[str, ...]
    until_done: bool = False


PLANS = {
    "one rank": Plan(
        1,
        (
            "S3 503",
            "S3 denies",
            "kill in an upload",
            "checkpoint flipped",
            "spot notice",
            "S3 cuts answers",
            "kill before the record",
            "checkpoint truncated",
            "kill a worker",
            "kill after the record",
            "kill in validation",
            "kill at the last batch",
        ),
    ),
    "two ranks": Plan(
        2,
        (
            "kill a rank",
            "kill the launcher",
            "checkpoint deleted",
            "SIGTERM",
            "S3 flips a bit",
            "kill",
            "record deleted",
            "kill at an epoch's end",
            "takeover",
            "kill pair",
            "S3 resets",  # the run may be done before a request of its meets these
            "S3 stalls",
        ),
        until_done=True,
    ),
    "four ranks": Plan(4, ("stop a rank", "kill a rank while S3 refuses"), until_done=True),
}
"""Fewer starts are enough where a fault that needs one follows a kill."""

LONG = ("clock jumps", "S3 404", "cached shard zeroed", "disk full", "S3 dead at a stop", "S3 dead")
"""Faults of `make chaos` alone: they take minutes each, a compiler, and the permission to mount."""


@pytest.fixture(scope="module")
def wholes(dataset: Path, module_folder: Path) -> dict[int, Whole]:
    """The undisturbed runs."""
    return undisturbed(dataset, module_folder, {plan.ranks for plan in PLANS.values()})


def test_every_fault_is_played_here_or_by_make_chaos() -> None:
    assert sorted([*LONG, *(name for plan in PLANS.values() for name in plan.faults)]) == sorted(FAULTS)


@pytest.mark.parametrize("name", PLANS)
def test_a_run_that_meets_faults_ends_as_the_undisturbed_one(
    proxy: Proxy, server: int, dataset: Path, wholes: dict[int, Whole], tmp_path: Path, name: str
) -> None:
    plan = PLANS[name]
    arena = Arena(dataset, put_dataset(dataset, server), server, proxy, wholes)
    with metadata_service() as metadata:
        game = Game(
            arena,
            tmp_path,
            metadata,
            seed=1,
            ranks=plan.ranks,
            until_done=plan.until_done,
            from_s3=False,
        )
        report = game.play({name: FAULTS[name] for name in plan.faults})
    # A fault is missed if the run is done before it, which a fast machine may be with the last ones.
    assert report.faults[0].outcome in ("stopped", "went on")
