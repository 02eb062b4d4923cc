"""Ranks that hang: what is noticed, which of them is named, what is left in their logs. They are small programs."""

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from imagenet_mds_train.interruption.board import Board, Phase, Place
from imagenet_mds_train.run.launch import Limits, launch
from imagenet_mds_train.run.watchdog import Watchdog
from tests.support.command import wait_until

BEGIN = """
import ctypes, os, signal, sys, time
from imagenet_mds_train.interruption.board import Board, Phase, Place
from imagenet_mds_train.interruption.stacks import write_stacks_on_request
write_stacks_on_request(sys.argv[2])
board, rank = Board.inherited(), int(os.environ["RANK"])

def at(phase, beats=7):
    # The last rank that comes lets the watchdog look.
    board.write(rank, Place(beats, batch=40, epoch=2, phase=phase, patient=True))
    while not all(board.read(other).beats for other in range(int(os.environ["WORLD_SIZE"]))):
        time.sleep(0.01)
    board.write(rank, Place(beats, batch=40, epoch=2, phase=phase, patient=False))

def hang_here():
    ctypes.PyDLL(None).sleep(10_000)  # never gives the interpreter to another thread
"""
WHERE = "made no progress for N s in epoch 3, batch 41: "


def without_numbers(text: str) -> str:
    """A text without the seconds of a hang, which are more than the limit on a busy machine."""
    return re.sub(r"for \d+ s in", "for N s in", text)


@pytest.mark.parametrize(
    ("programs", "words", "log"),
    [
        (
            ["at(Phase.STEP)", "at(Phase.STEP)\nos.kill(os.getpid(), signal.SIGSTOP)"],
            f"rank 1 {WHERE}it is stopped, by SIGSTOP or a debugger; stacks in ",
            "rank1.log",
        ),
        (
            [
                "import subprocess\nworker = subprocess.Popen(['sleep', '10000'])\n"
                "worker.send_signal(signal.SIGSTOP)\nat(Phase.DATA)"
            ],
            f"rank 0 {WHERE}its process ",
            "rank0.log",
        ),
        (
            ["at(Phase.STEP)", "at(Phase.DATA, 6)"],
            f"rank 1 {WHERE}no batch comes from its loader; stacks in",
            "rank1.log",
        ),
        (
            ["at(Phase.STEP, 6)", "at(Phase.STEP)"],
            f"rank 0 {WHERE}it does not get on, and the others wait",
            "rank0.log",
        ),
        (["at(Phase.STEP)", "at(Phase.STEP)"], f"the ranks {WHERE}a collective or a GPU does not answer", "rank*.log"),
        (["at(Phase.DATA)", "at(Phase.DATA)"], f"the ranks {WHERE}no batch comes from their loaders", "rank*.log"),
        (["at(Phase.STEP)"], f"rank 0 {WHERE}it does not get on; stacks in", "rank0.log"),
    ],
)
def test_the_rank_that_the_others_wait_for_is_named_and_the_stacks_are_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], programs: list[str], words: str, log: str
) -> None:
    chosen = "\n".join(f"if rank == {rank}:\n    " + one.replace("\n", "\n    ") for rank, one in enumerate(programs))
    program = f"{BEGIN}\n{chosen}\nhang_here()"
    limits = Limits(hang_seconds=0.4)
    assert launch(len(programs), tmp_path / "job", tmp_path, program=program, limits=limits).status == 1
    (shown,) = without_numbers(capfd.readouterr().err).splitlines()
    assert shown.startswith(f"imagenet-mds: {words}")
    assert shown.endswith(f"{tmp_path}/{log}")
    for rank, one in enumerate(programs):
        written = without_numbers((tmp_path / f"rank{rank}.log").read_text(encoding="utf-8"))
        assert f"{WHERE.removesuffix(': ')}" in written
        assert ("in hang_here" in written) == ("SIGSTOP)\n" not in f"{one}\n" or "subprocess" in one)


def test_ranks_that_were_late_to_stop_leave_their_stacks_too(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = f"{BEGIN}\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    program += "os.kill(os.getppid(), signal.SIGTERM)\nhang_here()"
    assert launch(1, tmp_path / "job", tmp_path, program=program, limits=Limits(stop_seconds=0.3)).status == 75
    assert "in hang_here" in (tmp_path / "rank0.log").read_text(encoding="utf-8")
    assert f"had to be killed; stacks in {tmp_path}/rank*.log. The last checkpoint is kept." in capfd.readouterr().err


class Clock:
    """The launcher's time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock that the test moves."""
    clock = Clock()
    monkeypatch.setattr("imagenet_mds_train.run.watchdog.time", clock)
    return clock


@pytest.fixture
def board() -> Iterator[Board]:
    """A board of two ranks that train."""
    board = Board.create(2)
    for rank in range(2):
        board.write(rank, Place(1, phase=Phase.STEP, patient=False))
    yield board
    board.close()


def looked(watchdog: Watchdog, clock: Clock, seconds: int, running: dict[int, int]) -> int | None:
    """Look twice a second; after how many seconds a hang was found, None if none was."""
    for half in range(2 * seconds):
        clock.now += 0.5
        if watchdog.look(running):
            return (half + 1) // 2
    return None


RUNNING = {0: os.getpid(), 1: os.getpid()}


def test_progress_of_one_rank_is_progress(board: Board, clock: Clock) -> None:
    watchdog = Watchdog(board, 100, 1800)
    board.write(0, Place(1, phase=Phase.DATA, patient=False))
    for beats in range(2, 6):
        assert looked(watchdog, clock, 99, RUNNING) is None
        board.write(beats % 2, Place(beats, phase=Phase.DATA, patient=False))
    assert looked(watchdog, clock, 200, RUNNING) == 100


def test_a_rank_that_starts_or_saves_has_more_time(board: Board, clock: Clock) -> None:
    watchdog = Watchdog(board, 100, 1800)
    board.write(0, Place(2, phase=Phase.SAVE, patient=True))
    assert looked(watchdog, clock, 2000, RUNNING) == 1800


def test_steps_that_take_minutes_are_no_hang(board: Board, clock: Clock) -> None:
    """On a processor. The first batch of a start has more time, and shows how long a step takes; a wait for data does
    not."""
    watchdog = Watchdog(board, 100, 1800)
    for phase in (Phase.STEP, Phase.DATA):
        board.write(0, Place(2, phase=phase, patient=True))
        assert looked(watchdog, clock, 40 if phase == Phase.STEP else 90, RUNNING) is None
        board.write(0, Place(3, phase=phase, patient=True))
        assert looked(watchdog, clock, 1, RUNNING) is None
    board.write(0, Place(4, phase=Phase.STEP, patient=False))
    assert looked(watchdog, clock, 2000, RUNNING) == 120


def test_a_stopped_rank_has_no_more_time_while_another_one_saves(board: Board, clock: Clock) -> None:
    watchdog = Watchdog(board, 100, 1800)
    board.write(0, Place(2, phase=Phase.SAVE, patient=True))
    process = subprocess.Popen(["sleep", "10000"])
    try:
        process.send_signal(signal.SIGSTOP)
        stat = Path(f"/proc/{process.pid}/stat")
        wait_until(lambda: ") T " in stat.read_text(encoding="ascii"), "the stop")
        assert looked(watchdog, clock, 2000, {0: os.getpid(), 1: process.pid}) == 100
    finally:
        process.kill()
        process.wait()


def test_time_in_which_the_launcher_did_not_run_does_not_count(board: Board, clock: Clock) -> None:
    """The machine slept, or everything was stopped: the ranks could make no progress either."""
    watchdog = Watchdog(board, 100, 1800)
    watchdog.look(RUNNING)
    for _ in range(90):
        clock.now += 10_000
        assert watchdog.look(RUNNING) is None
    assert looked(watchdog, clock, 200, RUNNING) == 10


def test_it_can_be_turned_off(board: Board, clock: Clock) -> None:
    watchdog = Watchdog(board, None, 1800)
    assert looked(watchdog, clock, 5000, RUNNING) is None
