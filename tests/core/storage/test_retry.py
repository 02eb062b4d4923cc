"""Retries: the times in the docstring follow from the constants."""

import time

import pytest

from imagenet_mds.storage import retry


def test_the_times_in_the_docstring_follow_from_the_constants() -> None:
    requests = 1 + retry.REQUEST_RETRIES
    waits = sum(min(2**number, 20) for number in range(retry.REQUEST_RETRIES))  # botocore's, if it is throttled
    pauses = sum(retry.longest_pause_seconds(attempt) for attempt in range(retry.BODY_ATTEMPTS - 1))
    silent = requests * retry.READ_TIMEOUT_SECONDS + waits
    for words in (
        f"{requests} requests at most",
        f"{waits} seconds in all",
        f"{requests} x {retry.CONNECT_TIMEOUT_SECONDS} s + {waits} s",
        f"{requests * retry.CONNECT_TIMEOUT_SECONDS + waits} seconds",
        f"{silent} seconds, then the command ends",
        f"{retry.BODY_ATTEMPTS} x {retry.READ_TIMEOUT_SECONDS} s + {pauses:.1f} s",
        f"{retry.BODY_ATTEMPTS * retry.READ_TIMEOUT_SECONDS + pauses:.0f} seconds",
        f"{retry.BODY_ATTEMPTS * (silent + retry.READ_TIMEOUT_SECONDS) + pauses:,.0f} seconds, the worst case",
        f"{retry.CREATE_ATTEMPTS}\ntimes with the same waits as a body",
        f"{retry.SHARD_DOWNLOADS} downloads without waits, so three times",
        f"{retry.EVICTED_SHARD_DOWNLOADS} downloads without waits",
        f"{1 + retry.LOST_TASK_RETRIES} runs",
    ):
        assert words in str(retry.__doc__)


def test_a_pause_is_drawn_and_doubles(monkeypatch: pytest.MonkeyPatch) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    for attempt in range(5):
        retry.pause(attempt)
    assert all(0 <= seconds <= 0.2 * 2**attempt for attempt, seconds in enumerate(slept))
    assert len(slept) == 5
