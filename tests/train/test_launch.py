"""Ranks that fail, are killed, or leave things behind. The ranks here are small programs in place of the trainer."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.process import attempt as attempt_module
from imagenet_mds.process.attempt import SHARED_MEMORY, Attempt, attempt, remove_stale
from imagenet_mds.process.locks import locked_folder
from imagenet_mds_train.run import launch as launch_module
from imagenet_mds_train.run.launch import launch
from tests.command import ROOTS


def as_ranks(monkeypatch: pytest.MonkeyPatch, program: str) -> None:
    """Let every rank run a program of the test's, `rank` its number."""
    monkeypatch.setattr(
        launch_module, "_START_RANK", f"import os, sys, time\nrank = int(os.environ['RANK'])\n{program}"
    )


def test_all_done_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(monkeypatch, "open(sys.argv[1] + str(rank), 'w').write(os.environ['WORLD_SIZE'])")
    assert launch(3, tmp_path / "order", tmp_path) == 0
    assert [(tmp_path / f"order{rank}").read_text() for rank in range(3)] == ["3"] * 3


def test_stopped_ranks_are_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(monkeypatch, "sys.exit(75)")
    assert launch(2, tmp_path / "order", tmp_path) == 75


def test_a_failing_rank_ends_the_others_and_is_shown(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_module, "_MOURNING_SECONDS", 0.2)
    as_ranks(monkeypatch, "if rank == 1: sys.exit('the disk is on fire')\ntime.sleep(60)")
    started = time.monotonic()
    assert launch(2, tmp_path / "order", tmp_path) == 1
    assert time.monotonic() - started < 20
    shown = capfd.readouterr().err
    assert "rank 1 failed" in shown
    assert "the disk is on fire" in shown


def test_a_killed_rank_is_named_by_its_signal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(launch_module, "_MOURNING_SECONDS", 0.2)
    as_ranks(monkeypatch, "os.kill(os.getpid(), 9) if rank == 0 else time.sleep(60)")
    assert launch(2, tmp_path / "order", tmp_path) == 1
    assert "rank 0 was ended by SIGKILL" in capfd.readouterr().err


def test_no_child_of_a_rank_outlives_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(
        monkeypatch,
        "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nopen(sys.argv[1], 'w').write(str(child.pid))",
    )
    assert launch(1, tmp_path / "child", tmp_path) == 0
    pid = int((tmp_path / "child").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_an_interruption_reaches_every_rank_as_sigterm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(
        monkeypatch,
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(75))\n"
        "open(sys.argv[1] + str(rank), 'w')\nif rank == 1:\n"
        "    while not os.path.exists(sys.argv[1] + '0'): time.sleep(0.01)\n"
        "    os.kill(os.getppid(), signal.SIGINT)\ntime.sleep(60)",
    )
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert launch(2, tmp_path / "order", tmp_path) == 75
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


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


def test_the_things_of_the_dead_are_removed_and_of_the_living_kept() -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    alive = subprocess.Popen(["sleep", "60"])
    namespace = attempt_module._namespace()
    try:
        dead, living = (
            Attempt(process.pid, Path(tempfile.mkdtemp(prefix=f"imagenet-mds-{namespace}-{process.pid}-")))
            for process in (gone, alive)
        )
        blocks = [SHARED_MEMORY / f"{mine.block_base + 1}_barrier" for mine in (dead, living)]
        strange = SHARED_MEMORY / f"000000_test{os.getpid()}"
        for path in (*blocks, strange):
            path.write_bytes(b"x")
        remove_stale()
        assert [path.exists() for path in (*blocks, strange)] == [False, True, True]
        assert [mine.temporary.exists() for mine in (dead, living)] == [False, True]
    finally:
        alive.kill()
        alive.wait()
        strange.unlink()
        attempt_module.remove_stale()
    assert not blocks[1].exists()


def test_a_rank_whose_launcher_is_gone_before_it_asks_ends_at_once() -> None:
    """The parent that `os.getppid()` names by then is another."""
    program = "from imagenet_mds.process.lifetime import die_with; die_with(%d); print('lives')"
    path = os.pathsep.join(ROOTS)
    for parent, status in ((os.getpid(), 0), (2**22 + 1, -signal.SIGKILL)):
        done = subprocess.run(
            [sys.executable, "-c", program % parent], env=os.environ | {"PYTHONPATH": path}, check=False, timeout=60
        )
        assert done.returncode == status


def test_ranks_that_had_nothing_to_save_are_stopped_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(monkeypatch, "if rank == 0: os.kill(os.getppid(), 15)\ntime.sleep(60)")
    assert launch(2, tmp_path / "order", tmp_path) == 75


def test_an_interruption_while_ranks_are_started_leaves_none_behind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The signal comes while the second rank is forked: that one is not in anybody's list yet."""
    as_ranks(monkeypatch, "time.sleep(60)")
    started: list[subprocess.Popen[bytes]] = []
    start = subprocess.Popen.__init__

    def interrupted(self: subprocess.Popen[bytes], *args: Any, **options: Any) -> None:
        start(self, *args, **options)
        started.append(self)
        if len(started) == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess.Popen, "__init__", interrupted)
    assert launch(3, tmp_path / "order", tmp_path) == 75
    assert len(started) == 3
    assert all(process.returncode == -signal.SIGTERM for process in started)


def test_ranks_that_wait_for_one_that_was_stopped_are_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(launch_module, "_SAVING_SECONDS", 0.2)
    as_ranks(
        monkeypatch,
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN if rank else lambda *_: sys.exit(75))\n"
        "open(sys.argv[1] + str(rank), 'w')\nif rank == 0:\n"
        "    while not os.path.exists(sys.argv[1] + '1'): time.sleep(0.01)\n"
        "    os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)",
    )
    assert launch(2, tmp_path / "order", tmp_path) == 75


def test_a_run_that_ends_in_spite_of_an_interruption_is_done(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(
        monkeypatch,
        "import signal\nsignal.signal(signal.SIGTERM, lambda *_: sys.exit(0))\n"
        "os.kill(os.getppid(), signal.SIGTERM)\ntime.sleep(60)",
    )
    assert launch(1, tmp_path / "order", tmp_path) == 0


def test_what_it_was_started_to_ignore_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As nohup starts it."""
    as_ranks(monkeypatch, "import signal\nos.kill(os.getppid(), signal.SIGHUP)\ntime.sleep(0.3)")
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert launch(1, tmp_path / "order", tmp_path) == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_ranks_hold_the_run_as_long_as_they_live(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    as_ranks(
        monkeypatch,
        "import fcntl\nfolder = os.open(os.path.dirname(sys.argv[1]), os.O_RDONLY)\n"
        "try: fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)\nexcept BlockingIOError: sys.exit(0)\nsys.exit(1)",
    )
    with locked_folder(tmp_path) as lock:
        os.set_inheritable(lock, False)
        assert launch(1, tmp_path / "order", tmp_path, lock) == 0
