"""A log as a history: what counts after a kill, hours over all starts, damaged lines."""

import json
from pathlib import Path

import pytest

from imagenet_mds_train.history.events import history_of, read_events
from tests.support.runs import KILLED_AND_CONTINUED, event, line, validation


def test_a_continued_run_has_the_batches_that_led_to_its_weights() -> None:
    history = history_of(KILLED_AND_CONTINUED)
    assert [point.batch for point in history.points] == list(range(1, 31))
    assert [point.loss for point in history.points[10:20]] == [1.0] * 10
    assert (history.batch, history.epoch) == (30, 3)
    assert history.repeated == [(10, 13)]
    assert [(one.batch, one.epoch, one.top1) for one in history.validations] == [
        (10, 1, 0.4),
        (20, 2, 0.6),
        (30, 3, 0.5),
    ]
    assert history.best == history.validations[1]


def test_hours_are_those_of_all_starts_without_the_time_between_them() -> None:
    history = history_of(KILLED_AND_CONTINUED)
    assert [start.hours * 60 for start in history.starts] == pytest.approx([13, 24])
    assert history.hours * 60 == pytest.approx(37)
    assert history.validations[1].hours * 60 == pytest.approx(13 + 11)
    assert [(start.batch, start.last_batch, start.ranks, start.end) for start in history.starts] == [
        (0, 13, 2, None),
        (10, 30, 2, "stopped"),
    ]


def test_a_failed_start_has_its_end_and_the_restart_after_it_is_another_one() -> None:
    failure = event("failed", 1, 14, 13, status=1, reason="rank 1 was killed")
    restart = event("restart", 1, 14, 10, reason="rank 1 was killed", pause_seconds=5.0)
    history = history_of([*KILLED_AND_CONTINUED[:15], failure, restart, *KILLED_AND_CONTINUED[15:]])
    assert [(start.batch, start.last_batch, start.end) for start in history.starts] == [
        (0, 13, "failed"),
        (10, 30, "stopped"),
    ]
    assert [point.batch for point in history.points] == list(range(1, 31))
    assert [start.hours * 60 for start in history.starts] == pytest.approx([14, 24])
    assert history.repeated == [(10, 13)]


def test_a_clock_that_was_set_back_takes_no_hours_away() -> None:
    history = history_of([event("start", 1, 60, 0), line(1, 90, 1), line(1, 10, 2)])
    assert history.hours == pytest.approx(0.5)


def test_speed_is_images_by_time_and_waiting_is_weighed_by_it() -> None:
    lines = [line(1, 1, 1, images_per_second=100.0, waiting_for_data=0.0)]
    lines.append(line(1, 2, 2, images_per_second=300.0, waiting_for_data=1.0))
    history = history_of([event("start", 1, 0, 0), *lines])
    assert history.images_per_second == pytest.approx(150.0)
    assert history.waiting_for_data == pytest.approx(0.25)


def test_what_was_not_finite_is_missing() -> None:
    history = history_of(
        [event("start", 1, 0, 0), line(1, 1, 1, loss=None), validation(1, 2, 10, 0.1) | {"top1": None}]
    )
    assert history.points[0].loss is None
    assert history.validations == []


def test_ranks_that_only_validated_are_a_start_too() -> None:
    """Killed after the last checkpoint: the next start has no batch to train and no event `start`."""
    events = [event("start", 1, 0, 0), line(1, 10, 10), validation(2, 60, 10, 0.5), event("done", 2, 61, 10)]
    history = history_of(events)
    assert [(start.attempt, start.batch, start.end) for start in history.starts] == [(1, 0, None), (2, 10, "done")]
    assert history.validations[0].top1 == 0.5


@pytest.mark.parametrize("key", ["attempt", "time", "batch"])
@pytest.mark.parametrize("value", [None, "x", True, [1]])
def test_foreign_events_are_left_out(key: str, value: object) -> None:
    history = history_of([event("start", 1, 0, 0), line(1, 1, 1), line(1, 2, 2) | {key: value}])
    assert [point.batch for point in history.points] == [1]


def test_damaged_lines_are_skipped_and_counted(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(json.dumps(line(1, 1, 1)).encode() + b'\n{"event": "ba\n\xff\xfe\n[1]\n3\n{"no": "event"}\n')
    events, others = read_events(log)
    assert ([one["batch"] for one in events], others) == ([1], 5)
    assert read_events(tmp_path / "none") == ([], 0)
    assert read_events(log / "none") == ([], 0)


def test_a_notice_before_the_first_event_of_a_start_is_no_start_of_its_own() -> None:
    notice = event("notice", 1, 0, 0, kind="save", text="it becomes likely")
    history = history_of([notice, event("start", 1, 1, 0), line(1, 2, 1)])
    assert [start.attempt for start in history.starts] == [1]
    assert [(one.batch, one.text) for one in history.notices] == [(0, "it becomes likely")]
