"""Processes that end with their parent, even if it is killed."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

PARENT_VARIABLE = "IMAGENET_MDS_PARENT"
"""Environment variable that tells a rank which process started it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies. Linux only; elsewhere this does nothing.

    Args:
        parent: the process that started this one. If it died before this call, this process is killed now.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def ignore_warning_signals() -> None:
    """Ignore the signals by which batch systems warn all processes of a job. The command answers them, for its workers
    and ranks too, which would end at once."""
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)


def die_with_launcher() -> None:
    """Call `die_with` for the launcher that started this rank.

    Raises:
        KeyError: no launcher started this process.
    """
    die_with(int(os.environ[PARENT_VARIABLE]))


def end_with_pool() -> None:
    """End this pool worker when its run is killed, so that it writes nothing into the destination of a later run."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    ignore_warning_signals()


def _end_with_parent() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)
