"""The verdict of a replay: which losses of the log it depends on, and how much they may differ."""

import math
from typing import Any

import pytest

from imagenet_mds_train.replay.comparison import BOUND, ComparedLoss, RunLosses, Verdict
from tests.support.runs import event, line


def losses(attempt: int, first: int, last: int, loss: float | None = 1.5) -> list[dict[str, Any]]:
    """Lines of the log about some batches."""
    return [line(attempt, batch, batch, loss=loss) for batch in range(first, last + 1)]


def started(attempt: int, batch: int, ranks: int) -> dict[str, Any]:
    """A line about the start of an attempt."""
    return event("start", attempt, batch, batch, ranks=ranks, machine={"device": f"machine {attempt}", "threads": 1})


def saved(attempt: int, batch: int) -> dict[str, Any]:
    """A line about a checkpoint."""
    return event("checkpoint", attempt, batch, batch, epoch=0)


def verdict(
    events: list[dict[str, Any]], batch: int, ranks: int, now: list[float | None], *, deterministic: bool = True
) -> Verdict:
    """Compare the losses of the batches after `batch`."""
    log = RunLosses.of(events)
    logged = log.after(batch, len(now))
    return Verdict.of(log, logged, batch, ranks, now, deterministic=deterministic, machine={"device": "now"})


def test_equal_losses_agree_and_the_last_bit_does_not() -> None:
    events = [started(1, 0, 1), *losses(1, 1, 4), saved(1, 4), *losses(1, 5, 8)]
    same = verdict(events, 4, 1, [1.5] * 4)
    assert (same.differing, same.largest, same.bound, len(same.judged)) == ([], 0.0, 0.0, 4)
    other = verdict(events, 4, 1, [1.5, 1.5, math.nextafter(1.5, 2), 1.5])
    assert [one.batch for one in other.differing] == [7]
    assert 0 < other.largest < 1e-15


@pytest.mark.parametrize(("factor", "agrees"), [(1 + BOUND / 2, True), (1 - BOUND / 2, True), (1 + 2 * BOUND, False)])
def test_a_run_that_is_not_deterministic_agrees_within_the_bound(factor: float, agrees: bool) -> None:
    events = [started(1, 0, 1), saved(1, 4), *losses(1, 5, 8)]
    found = verdict(events, 4, 1, [1.5, 1.5 * factor, 1.5, 1.5], deterministic=False)
    assert found.bound == BOUND
    assert [one.batch for one in found.differing] == ([] if agrees else [6])
    assert found.largest == pytest.approx(abs(factor - 1))


@pytest.mark.parametrize(
    ("logged", "now", "difference"),
    [(None, None, 0.0), (None, 1.0, math.inf), (1.0, None, math.inf), (0.0, 1.0, math.inf), (0.0, 0.0, 0.0)],
)
def test_losses_that_are_not_finite_agree_with_each_other_alone(
    logged: float | None, now: float | None, difference: float
) -> None:
    assert ComparedLoss(1, 1, 1, logged, now, True).difference == difference


def test_each_attempt_is_compared_and_a_difference_among_them_is_found() -> None:
    events = [
        *(started(1, 0, 2), *losses(1, 1, 4), saved(1, 4), *losses(1, 5, 7)),
        *(started(2, 4, 2), *losses(2, 5, 6), *losses(2, 7, 7, loss=1.25), *losses(2, 8, 9)),
    ]
    found = verdict(events, 4, 2, [1.5] * 5)
    assert [(one.batch, one.attempt) for one in found.judged] == [
        *((5, 1), (5, 2), (6, 1), (6, 2), (7, 1), (7, 2)),
        *((8, 2), (9, 2)),
    ]
    assert [(one.batch, one.attempt) for one in found.differing] == [(7, 2)]
    assert found.torn == [7]
    assert found.then == {"device": "machine 2", "threads": 1}
    assert found.changed == {"device": ("machine 2", "now")}


def test_attempts_on_other_numbers_of_ranks_are_shown_and_not_judged() -> None:
    """From batch 4 on 4 ranks to 7, and from there on 2; then from 4 on 2 ranks, saved at 6, and from there on 4."""
    events = [
        *(started(1, 0, 4), *losses(1, 1, 4), saved(1, 4), *losses(1, 5, 7), saved(1, 7)),
        *(started(2, 7, 2), *losses(2, 8, 9)),
        *(started(3, 4, 2), *losses(3, 5, 6, loss=1.25), saved(3, 6), *losses(3, 7, 9)),
        *(started(4, 6, 4), *losses(4, 7, 9)),
    ]
    for ranks, judged in (
        (4, [(5, 1), (6, 1), (7, 1)]),
        (2, [(5, 3), (6, 3), (7, 3), (8, 3), (9, 3)]),
        (1, [(5, 1), (5, 3), (6, 1), (6, 3), (7, 1), (7, 3), (7, 4), (8, 2), (8, 3), (8, 4), (9, 2), (9, 3), (9, 4)]),
    ):
        found = verdict(events, 4, ranks, [1.5] * 5)
        assert [(one.batch, one.attempt) for one in found.judged] == judged, ranks
        assert (len(found.compared), found.torn) == (13, [])
    # The checkpoint of batch 6 was trained on 2 ranks from batch 4 on, so that attempt 1 has nothing to say of it.
    assert [(one.batch, one.attempt) for one in verdict(events, 6, 4, [1.5] * 3).judged] == [(7, 4), (8, 4), (9, 4)]


def test_a_change_of_ranks_before_all_attempts_that_are_compared_does_not_matter() -> None:
    events = [
        *(started(1, 0, 4), *losses(1, 1, 4)),
        *(started(2, 4, 2), *losses(2, 5, 6), saved(2, 6), *losses(2, 7, 7)),
        *(started(3, 6, 2), *losses(3, 7, 8)),
    ]
    assert [(one.batch, one.attempt) for one in verdict(events, 6, 2, [1.5] * 2).judged] == [(7, 2), (7, 3), (8, 3)]


def test_lines_that_are_none_and_a_log_without_starts_are_read() -> None:
    damaged: list[Any] = [1, "line", {"event": "batch"}, {"event": "batch", "attempt": 1, "batch": None, "loss": 1.0}]
    found = verdict([*damaged, *losses(1, 5, 6)], 4, 1, [1.5, 2.0])
    assert [(one.batch, one.ranks) for one in found.judged] == [(5, None), (6, None)]
    assert [one.batch for one in found.differing] == [6]
    assert (found.then, found.changed) == ({}, {})
