"""What ended a rank, told apart and explained in one line."""

import signal
from pathlib import Path

import pytest

from imagenet_mds_train.run.failures import EXIT_PORT_TAKEN, is_peer_lost, is_port_taken, worker_failure
from imagenet_mds_train.run.launch import launch


def launch_program(ranks: int, folder: Path, program: str) -> int:
    """Launch ranks that run a program of the test's, and return the status."""
    return launch(ranks, folder / "job", folder, program=f"import os, sys, time\n{program}").status


@pytest.mark.parametrize(
    ("message", "line"),
    [
        (
            "DataLoader worker (pid 7) is killed by signal: Killed. ",
            "a loader worker of rank 3 was killed, most likely by",
        ),
        ("DataLoader worker (pid(s) 7, 8) exited unexpectedly", "a loader worker of rank 3 was killed, most likely by"),
        ("DataLoader worker (pid 7) is killed by signal: Segmentation fault. ", "of rank 3 ended (Segmentation fault)"),
    ],
)
def test_a_lost_loader_worker_is_explained(message: str, line: str) -> None:
    assert line in (worker_failure(message, 3) or "")
    assert worker_failure("something else", 3) is None


def test_a_lost_peer_is_told_from_other_errors() -> None:
    gloo = "[../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1234"
    assert is_peer_lost(gloo)
    assert not is_peer_lost("CUDA out of memory. Tried to allocate 2.00 GiB")


def test_ctrl_z_is_answered_and_suspends_nobody(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = "import signal\nos.kill(os.getppid(), signal.SIGTSTP)\ntime.sleep(0.5)"
    assert launch_program(1, tmp_path, program) == 0
    assert "Ctrl-Z is ignored, because the ranks would run on. Ctrl-C saves and exits." in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTSTP) is signal.SIG_DFL


def test_a_port_that_is_taken_is_exchanged_for_another(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    program = (
        "with open(sys.argv[1], 'a') as file: file.write(os.environ['MASTER_PORT'] + '\\n')\n"
        f"sys.exit({EXIT_PORT_TAKEN} if len(open(sys.argv[1]).readlines()) < 3 else 0)"
    )
    assert launch_program(1, tmp_path, program) == 0
    assert len((tmp_path / "job").read_text().splitlines()) == 3
    assert launch_program(1, tmp_path, f"sys.exit({EXIT_PORT_TAKEN})") == 1
    assert "the ports that were free were taken before the ranks could listen" in capfd.readouterr().err
    assert is_port_taken("The server socket has failed to listen on any local network address. EADDRINUSE")
    assert not is_port_taken("Connection refused")
