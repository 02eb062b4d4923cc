"""Ranks that fail, are killed, or leave things behind. The ranks here are small programs in place of the trainer."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.process.attempt import SHARED_MEMORY, Attempt, attempt, remove_stale
from imagenet_mds.process.locks import locked_folder
from imagenet_mds_train.run.launch import Limits, launch
from tests.support.command import HANG_SECONDS, ROOTS, wait_until


def launch_program(ranks: int, folder: Path, program: str, lock: int | None = None, **options: Any) -> int:
    """Launch ranks that run a program of the test's, `rank` its number, and return the status."""
    program = f"import os, sys, time\nrank = int(os.environ['RANK'])\n{program}"
    return launch(ranks, folder / "job", folder, lock, program=program, **options).status


def test_all_done_is_done(tmp_path: Path) -> None:
    program = "open(sys.argv[1] + str(rank), 'w').write(os.environ['WORLD_SIZE'])"
    assert launch_program(3, tmp_path, program) == 0
    assert [(tmp_path / f"job{rank}").read_text() for rank in range(3)] == ["3"] * 3


def test_ranks_share_the_processors_or_have_the_threads_that_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = "open(sys.argv[1] + str(rank), 'w').write(os.environ['OMP_NUM_THREADS'])"
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    for asked, given in ((None, "4"), (3, "3")):
        assert launch_program(2, tmp_path, program, threads=asked) == 0
        assert [(tmp_path / f"job{rank}").read_text() for rank in range(2)] == [given] * 2


def test_stopped_ranks_are_stopped(tmp_path: Path) -> None:
    program = "sys.exit(75)"
    assert launch_program(2, tmp_path, program) == 75


def test_a_failing_rank_ends_the_others_and_is_shown(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "if rank == 1: sys.exit('the disk is on fire')\ntime.sleep(10_000)"
    assert launch_program(2, tmp_path, program, limits=Limits(failure_grace_seconds=0.2)) == 1
    shown = capfd.readouterr().err
    assert "rank 1 failed" in shown
    assert "the disk is on fire" in shown


def test_a_killed_rank_is_named_by_its_signal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "os.kill(os.getpid(), 9) if rank == 0 else time.sleep(10_000)"
    assert launch_program(2, tmp_path, program, limits=Limits(failure_grace_seconds=0.2)) == 1
    shown = capfd.readouterr().err
    assert shown.startswith("imagenet-mds: rank 0 was killed, most likely by the kernel because memory ran out")
    assert "data.workers_per_rank" in shown


@pytest.mark.parametrize(
    ("programs", "line"),
    [
        # The killed rank is named, not the one that lost it, nor the one that was killed here.
        (["sys.exit(76)", "os.kill(os.getpid(), 9)", "time.sleep(10_000)"], "rank 1 was killed, most likely"),
        (["time.sleep(10_000)", "sys.exit(76)", "os.kill(os.getpid(), 11)"], "rank 2 was ended by SIGSEGV"),
        (["sys.exit(76)", "sys.exit('imagenet-mds: the shard is gone')"], "the shard is gone (rank 1; more in"),
    ],
)
def test_the_rank_that_failed_by_itself_is_the_one_that_is_named(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], programs: list[str], line: str
) -> None:
    program = "\n".join(f"if rank == {rank}: {one}" for rank, one in enumerate(programs))
    assert launch_program(len(programs), tmp_path, program, limits=Limits(failure_grace_seconds=1.0)) == 1
    shown = capfd.readouterr().err
    assert shown.startswith(f"imagenet-mds: {line}")
    assert shown.count("\n") == 1


def test_no_child_of_a_rank_outlives_it(tmp_path: Path) -> None:
    program = (
        "import subprocess\nchild = subprocess.Popen(['sleep', '10000'])\nopen(sys.argv[1], 'w').write(str(child.pid))"
    )
    assert launch_program(1, tmp_path, program) == 0
    pid = int((tmp_path / "job").read_text())
    stat = Path(f"/proc/{pid}/stat")
    wait_until(lambda: not stat.exists() or "Z" in stat.read_text().split()[2], "the end of the child")


def test_an_interruption_reaches_every_rank_as_sigterm(tmp_path: Path) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open(sys.argv[1] + str(rank), 'w')\nif rank == 1:\n"
        "    while not os.path.exists(sys.argv[1] + '0'): time.sleep(0.01)\n"
        "    os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(10_000)"
    )
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert launch_program(2, tmp_path, program) == 75
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2])
def test_the_warning_of_a_batch_system_stops_the_run(tmp_path: Path, number: signal.Signals) -> None:
    """SLURM sends it to the command alone, or to all processes of the job."""
    program = (
        "import signal\nfrom imagenet_mds.process.lifetime import ignore_warning_signals\nignore_warning_signals()\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        f"for pid in (os.getpid(), os.getppid()): os.kill(pid, {int(number)})\ntime.sleep(10_000)"
    )
    before = signal.getsignal(number)
    assert launch_program(1, tmp_path, program) == 75
    assert signal.getsignal(number) == before


def test_a_request_that_is_passed_on_twice_is_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A supervisor and a wrapper script may both pass it on. The rank takes a while to save."""
    program = (
        "import signal\n"
        "def save(*_):\n    time.sleep(1)\n    open(sys.argv[1], 'w').write('saved')\n    os._exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGHUP): os.kill(os.getppid(), number)\n"
        "time.sleep(10_000)"
    )
    assert launch_program(1, tmp_path, program) == 75
    assert (tmp_path / "job").read_text() == "saved"
    assert "Killed" not in capfd.readouterr().err


def test_a_second_ctrl_c_kills_and_says_so(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "for _ in range(2):\n    os.kill(os.getppid(), signal.SIGINT)\n    time.sleep(0.5)\n"
        "time.sleep(10_000)"
    )
    assert launch_program(1, tmp_path, program) == 75
    assert "Killed before saving: the last checkpoint is kept." in capfd.readouterr().err


def test_what_an_attempt_borrows_is_given_back() -> None:
    with attempt() as mine:
        block = SHARED_MEMORY / f"{mine.block_base}_locals"
        block.write_bytes(b"x")
        (mine.temporary / "lock").touch()
    assert not block.exists()
    assert not mine.temporary.exists()


def test_a_long_temporary_folder_is_not_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Behind it the name of a socket would not fit, and loader workers would wait for each other for ever."""
    long = tmp_path / ("x" * 60)
    long.mkdir()
    for folder, used in ((long, Path("/tmp")), (Path("/dev/shm"), Path("/dev/shm"))):
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        with attempt() as mine:
            assert mine.temporary.parent == used
            assert len(str(mine.temporary / "pymp-12345678" / "listener-12345678")) < 108


HOLD = """
import sys, time
from imagenet_mds.process.attempt import attempt
with attempt() as mine:
    print(mine.number, mine.temporary, flush=True)
    time.sleep(10_000)
"""


def holder(*prefix: str) -> tuple[subprocess.Popen[str], Attempt]:
    """A process that holds an attempt, and the attempt."""
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS)}
    process = subprocess.Popen([*prefix, sys.executable, "-c", HOLD], env=variables, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout as output:
        number, temporary = output.readline().split()
    return process, Attempt(int(number), Path(temporary))


def test_what_a_killed_attempt_left_is_removed_and_what_a_live_one_has_is_kept() -> None:
    (killed, stale), (alive, living) = holder(), holder()
    blocks = [SHARED_MEMORY / f"{mine.block_base + 1}_barrier" for mine in (stale, living)]
    strange = SHARED_MEMORY / f"000000_test{os.getpid()}"
    try:
        for path in (*blocks, strange):
            path.write_bytes(b"x")
        killed.kill()
        killed.wait()
        assert stale.temporary.exists()
        remove_stale()
        assert [path.exists() for path in (*blocks, strange)] == [False, True, True]
        assert [mine.temporary.exists() for mine in (stale, living)] == [False, True]
    finally:
        for process in (killed, alive):
            process.kill()
            process.wait()
        strange.unlink()
        remove_stale()
    assert not blocks[1].exists()
    assert not living.temporary.exists()


def test_a_live_attempt_is_kept_where_its_process_number_means_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container or virtual machine that shares the folder has other process numbers, or the same for others."""
    alive, living = holder()
    block = SHARED_MEMORY / f"{living.block_base + 1}_barrier"
    block.write_bytes(b"x")
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: exists(path) and not str(path).startswith("/proc/"))
    try:
        remove_stale()
        assert block.exists()
        assert living.temporary.exists()
    finally:
        alive.kill()
        alive.wait()
        remove_stale()
    assert not block.exists()


def test_attempts_that_start_while_others_clean_up_keep_what_they_have() -> None:
    """Between the creation of a folder and its lock it looks stale."""
    program = (
        "from imagenet_mds.process.attempt import attempt\n"
        "for _ in range(150):\n"
        "    with attempt() as mine:\n"
        "        assert mine.temporary.is_dir()\n"
        "        (mine.temporary / 'file').touch()\n"
    )
    variables = os.environ | {"PYTHONPATH": os.pathsep.join(ROOTS)}
    processes = [subprocess.Popen([sys.executable, "-c", program], env=variables) for _ in range(4)]
    assert [process.wait(timeout=HANG_SECONDS) for process in processes] == [0] * 4


def test_a_folder_without_locks_is_an_error_and_not_an_endless_search(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("imagenet_mds.process.attempt.fcntl.flock", refuse)
    before = set(Path(tempfile.gettempdir()).iterdir())
    with pytest.raises(OSError, match="No locks available"), attempt():
        pass
    assert not [path for path in set(Path(tempfile.gettempdir()).iterdir()) - before if "imagenet-mds" in path.name]


def test_folders_of_other_machines_are_kept() -> None:
    foreign = Path(tempfile.mkdtemp(prefix="imagenet-mds-ffffffff-123456789012-"))
    try:
        remove_stale()
        assert foreign.exists()
    finally:
        foreign.rmdir()


def test_blocks_without_an_owner_are_removed() -> None:
    block = SHARED_MEMORY / "99999999999907_barrier"
    block.write_bytes(b"x")
    remove_stale()
    assert not block.exists()


def test_a_rank_whose_launcher_is_gone_before_it_asks_ends_at_once() -> None:
    """The parent that `os.getppid()` names by then is another."""
    program = "from imagenet_mds.process.lifetime import die_with; die_with(%d); print('lives')"
    path = os.pathsep.join(ROOTS)
    for parent, status in ((os.getpid(), 0), (2**22 + 1, -signal.SIGKILL)):
        done = subprocess.run(
            [sys.executable, "-c", program % parent],
            env=os.environ | {"PYTHONPATH": path},
            check=False,
            timeout=HANG_SECONDS,
        )
        assert done.returncode == status


def test_ranks_that_had_nothing_to_save_are_stopped_too(tmp_path: Path) -> None:
    program = "if rank == 0: os.kill(os.getppid(), 15)\ntime.sleep(10_000)"
    assert launch_program(2, tmp_path, program) == 75


def test_an_interruption_while_ranks_are_started_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal comes while the second rank is forked: that one is not in anybody's list yet."""
    program = "time.sleep(10_000)"
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen.__init__

    def interrupted(self: subprocess.Popen[bytes], *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        started.append(self)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess.Popen, "__init__", interrupted)
    assert launch_program(3, tmp_path, program) == 75
    assert len(started) == 3
    assert all(process.returncode == -signal.SIGTERM for process in started)


@pytest.mark.parametrize(
    ("kept", "may_continue", "status", "words"),
    [
        (True, True, 75, "rank 1 had not stopped 0.3 s after the request and had to be killed; stacks in "),
        (True, False, 1, "imagenet-mds: rank 1 had not stopped 0.3 s after the request and had to be killed before"),
        (False, False, 75, "rank 1 had not stopped 0.3 s after the request and had to be killed."),
    ],
)
def test_ranks_that_do_not_stop_in_time_are_killed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], kept: bool, may_continue: bool, status: int, words: str
) -> None:
    """A rank that waits for one that has stopped, for one, in a library that handles no signals meanwhile."""
    program = (
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN if rank else lambda *_: sys.exit(75))\n"
        "open(sys.argv[1] + str(rank), 'w')\nif rank == 0:\n"
        "    while not os.path.exists(sys.argv[1] + '1'): time.sleep(0.01)\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(10_000)"
    )
    limits = Limits(stop_seconds=0.3)
    done = launch_program(2, tmp_path, program, limits=limits, kept=kept, may_continue=lambda: may_continue)
    assert done == status
    _, killed = capfd.readouterr().err.splitlines()
    assert killed.startswith(words)


def test_a_rank_that_cannot_even_be_asked_to_stop_is_killed(tmp_path: Path) -> None:
    """SIGTERM waits for SIGCONT."""
    program = "import signal\nos.kill(os.getppid(), signal.SIGTERM)\nos.kill(os.getpid(), signal.SIGSTOP)"
    assert launch_program(1, tmp_path, program, limits=Limits(stop_seconds=0.3)) == 75


@pytest.mark.parametrize(("may_continue", "status"), [(True, 75), (False, 1)])
def test_a_run_that_fails_after_a_request_to_stop_is_not_to_be_restarted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], may_continue: bool, status: int
) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit('S3 takes no checkpoint'))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(10_000)"
    )
    assert launch_program(1, tmp_path, program, may_continue=lambda: may_continue) == status
    assert "S3 takes no checkpoint" in capfd.readouterr().err


def test_a_run_that_ends_in_spite_of_an_interruption_is_done(tmp_path: Path) -> None:
    program = (
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(10_000)"
    )
    assert launch_program(1, tmp_path, program) == 0


def test_what_it_was_started_to_ignore_is_ignored(tmp_path: Path) -> None:
    """nohup starts a command with SIGHUP ignored."""
    program = "import signal\nos.kill(os.getppid(), signal.SIGHUP)\ntime.sleep(0.3)"
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch_program(1, tmp_path, program) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_ranks_hold_the_run_as_long_as_they_live(tmp_path: Path) -> None:
    program = (
        "import fcntl\nfolder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)\n"
        "try: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: sys.exit(0)\nsys.exit(1)"
    )
    with locked_folder(tmp_path) as lock:
        os.set_inheritable(lock, False)
        assert launch_program(1, tmp_path, program, lock) == 0
