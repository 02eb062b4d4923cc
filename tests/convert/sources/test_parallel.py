"""Calls running ahead in threads: results in order, a bounded number in flight, errors at their own call."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_mds_convert.sources.parallel import run_ahead


@given(delays=st.lists(st.integers(0, 3), max_size=20), threads=st.integers(1, 5), data=st.data())
def test_results_and_errors_come_in_the_order_of_the_calls(
    delays: list[int], threads: int, data: st.DataObject
) -> None:
    bad = data.draw(st.sets(st.integers(0, 19)))

    def call(number: int) -> int:
        time.sleep(delays[number] / 10_000)
        if number in bad:
            raise OSError(number, "bad")
        return number

    def outcome(take: Callable[[], int]) -> tuple[int | None, bool]:
        try:
            return take(), False
        except OSError as error:
            return error.errno, True

    found = [outcome(take) for take in run_ahead((partial(call, number) for number in range(len(delays))), threads)]
    assert found == [(number, number in bad) for number in range(len(delays))]


def test_as_many_calls_are_under_way_as_there_are_threads() -> None:
    meeting = threading.Barrier(4)
    takes = list(run_ahead((partial(meeting.wait, 20) for _ in range(12)), 4))
    assert sorted(take() for take in takes) == [place for place in range(4) for _ in range(3)]


def test_with_one_thread_calls_run_in_the_callers_thread() -> None:
    (take,) = run_ahead([threading.get_ident], 1)
    assert take() == threading.get_ident()


@pytest.mark.parametrize("threads", [1, 3])
def test_no_more_calls_start_than_are_needed(threads: int) -> None:
    begun = 0

    def calls() -> Iterator[partial[None]]:
        nonlocal begun
        while True:
            begun += 1
            yield partial(time.sleep, 0)

    takes = run_ahead(calls(), threads)
    for asked in range(1, 30):
        next(takes)()
        assert begun <= asked + 2 * threads
    takes.close()  # type: ignore[attr-defined] # it is a generator
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ThreadPoolExecutor")]
