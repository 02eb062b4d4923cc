"""How long a run trains between checkpoints."""

import math

import pytest

from imagenet_mds_train.checkpoints.pace import SHORTEST_SECONDS, SavePace


def test_without_an_interruption_or_a_save_it_is_the_longest() -> None:
    assert SavePace(300, 0, 0).interval_seconds(10_000) == 300
    pace = SavePace(300, 3, 3600)
    assert pace.interval_seconds(10) == 300
    pace.saved(stall_seconds=0.5, durable_seconds=1)
    assert pace.interval_seconds(10) < 300


@pytest.mark.parametrize(("stall", "hours", "interruptions"), [(1.0, 2.0, 1), (2.0, 1.0, 2), (0.5, 4.0, 1)])
def test_it_is_youngs(stall: float, hours: float, interruptions: int) -> None:
    pace = SavePace(10_000, interruptions, hours * 3600 - 60)
    pace.saved(stall_seconds=stall, durable_seconds=stall)
    assert pace.interval_seconds(60) == pytest.approx(math.sqrt(2 * stall * hours * 3600 / interruptions))


def test_the_formulas_optimum_is_the_least_loss() -> None:
    """Against the cost itself: saves over a time, and half an interval lost at each interruption."""
    stall, between = 0.8, 5000.0
    pace = SavePace(10_000, 1, between)
    pace.saved(stall_seconds=stall, durable_seconds=1)
    best = pace.interval_seconds(0)

    def lost(interval: float) -> float:
        return stall / interval + interval / 2 / between

    assert all(lost(best) <= lost(best * factor) for factor in (0.5, 0.8, 0.95, 1.05, 1.3, 2))


def test_it_leaves_the_network_and_the_disk_some_rest() -> None:
    pace = SavePace(300, 100, 100)
    pace.saved(stall_seconds=0.01, durable_seconds=5)
    assert pace.interval_seconds(0) == SHORTEST_SECONDS
    for _ in range(9):
        pace.saved(stall_seconds=0.01, durable_seconds=60)
    assert pace.interval_seconds(0) == 120
    for _ in range(9):
        pace.saved(stall_seconds=0.01, durable_seconds=1000)
    assert pace.interval_seconds(0) == 300


def test_a_configured_interval_is_never_exceeded() -> None:
    pace = SavePace(5, 1, 10_000)
    pace.saved(stall_seconds=3, durable_seconds=100)
    assert pace.interval_seconds(0) == 5
