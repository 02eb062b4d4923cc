"""Restarts in place: which failures they follow, how many there are, and what ends them."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_mds_train.interruption.board import Board
from imagenet_mds_train.run.launch import Ended, Limits, launch
from imagenet_mds_train.run.until_done import Restart, Restarts, may_restart, run_until_done


@pytest.mark.parametrize(
    ("status", "restarts"),
    [(0, False), (1, True), (2, False), (75, False), (78, False), (137, True), (-signal.SIGKILL, True)],
)
def test_statuses_that_are_restarted(status: int, restarts: bool) -> None:
    assert may_restart(status) is restarts


def failed(batch: int | None) -> Ended:
    """A failure after a number of finished batches."""
    return Ended(1, "it broke", batch)


def test_pauses_double_and_end_without_a_new_checkpoint() -> None:
    restarts = Restarts(0)
    decisions = [restarts.after(failed(batch), 0) for batch in range(6)]
    assert decisions[:5] == [Restart(5.0 * 2**number, number + 1) for number in range(5)]
    assert decisions[5] == "5 restarts in a row gave no new checkpoint"


def test_a_new_checkpoint_begins_the_count_again() -> None:
    restarts = Restarts(10)
    for batch in range(11, 100):
        assert restarts.after(failed(batch), batch) == Restart(5.0, 1)


def test_no_pause_is_longer_than_five_minutes() -> None:
    restarts = Restarts(0, first_pause_seconds=200)
    assert [restarts.after(failed(batch), 0) for batch in (1, 2)] == [Restart(200, 1), Restart(300, 2)]


def test_the_same_batch_twice_ends_it_even_after_a_new_checkpoint() -> None:
    restarts = Restarts(0)
    assert restarts.after(failed(41), 30) == Restart(5.0, 1)
    assert restarts.after(failed(None), 30) == Restart(10.0, 2)
    assert restarts.after(failed(41), 40) == "it failed twice in batch 42, so it would fail there again"


def test_starts_that_fail_before_a_batch_are_not_the_same_batch() -> None:
    restarts = Restarts(0)
    assert [type(restarts.after(failed(None), 0)) for _ in range(6)] == [Restart] * 5 + [str]


PROGRAM = """
import os, sys, time
from imagenet_mds_train.interruption.board import Board, Phase, Place
board, rank = Board.inherited(), int(os.environ["RANK"])
with open(f"{sys.argv[1]}{rank}", "a+") as file:
    file.write("x")
    file.seek(0)
    number = len(file.read())
board.write(rank, Place(1, batch=number, epoch=0, phase=Phase.STEP, patient=False))
"""


class Story:
    """Starts of small programs, and what is said about them."""

    def __init__(self, folder: Path, program: str) -> None:
        self.folder, self.program = folder, program
        self.reasons: list[str | None] = []
        self.given_up: list[str] = []

    def once(self) -> Ended:
        """Launch two ranks."""
        limits = Limits(failure_grace_seconds=0.2, hang_seconds=0.5)
        return launch(2, self.folder / "job", self.folder, program=PROGRAM + self.program, limits=limits)

    def run(self, *, first_pause_seconds: float = 0.0, during_pause: Callable[[], None] = lambda: None) -> int:
        """Run until done; return the status."""

        def on_restart(ended: Ended, restart: Restart) -> None:
            self.reasons.append(ended.reason)
            during_pause()

        ended = run_until_done(
            self.once, lambda: 0, on_restart, self.given_up.append, first_pause_seconds=first_pause_seconds
        )
        return ended.status


def test_a_killed_rank_and_a_hang_are_restarted_until_the_run_is_done(tmp_path: Path) -> None:
    story = Story(tmp_path, "if number == 1 and rank == 1: os.kill(os.getpid(), 9)\nif number < 3: time.sleep(10_000)")
    assert story.run() == 0
    killed, hung = story.reasons
    assert (killed or "").startswith("rank 1 was killed, most likely by the kernel because memory ran out")
    assert "in epoch 1, batch 3: a collective or a GPU does not answer" in (hung or "")
    assert story.given_up == []


def test_a_batch_that_fails_twice_is_given_up(tmp_path: Path) -> None:
    fails = (
        "board.explain(rank, f'rank {rank} cannot decode it')\nboard.write(rank, Place(2, batch=7, phase=Phase.STEP))"
    )
    story = Story(tmp_path, f"{fails}\nsys.exit(1)")
    assert story.run() == 78
    assert [reason in ("rank 0 cannot decode it", "rank 1 cannot decode it") for reason in story.reasons] == [True]
    assert story.given_up == ["it failed twice in batch 8, so it would fail there again"]


@pytest.mark.parametrize("status", [2, 75, 78])
def test_what_a_restart_does_not_help_against_ends_at_once(tmp_path: Path, status: int) -> None:
    story = Story(tmp_path, f"sys.exit({status})")
    assert story.run() == status
    assert (story.reasons, story.given_up) == ([], [])
    assert (tmp_path / "job0").read_text(encoding="utf-8") == "x"


def test_a_request_to_stop_ends_the_pause(tmp_path: Path) -> None:
    story = Story(tmp_path, "sys.exit(1)")
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM))
    before = signal.getsignal(signal.SIGTERM)
    signal.signal(signal.SIGTERM, lambda *_: None)  # should it come before the pause, the test must live on
    try:
        assert story.run(first_pause_seconds=10_000, during_pause=timer.start) == 75
    finally:
        signal.signal(signal.SIGTERM, before)
        timer.cancel()
    assert (tmp_path / "job0").read_text(encoding="utf-8") == "x"


def test_a_reason_of_any_length_reaches_the_launcher() -> None:
    board = Board.create(2)
    board.explain(0, "x" * 5000)
    board.explain(1, "too little room: \N{SNOWMAN}")
    assert board.reason(0) == "x" * len(board.reason(0) or "")
    assert len(board.reason(0) or "") > 500
    assert board.reason(1) == "too little room: \N{SNOWMAN}"
    board.close()
