"""No process outlives the one that started it, even if that one is killed."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading

PARENT_VARIABLE = "IMAGENET_MDS_PARENT"
"""The environment variable that tells a rank which process started it."""

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Ask the kernel for SIGKILL when the parent dies. Linux only; elsewhere nothing happens.

    Args:
        parent: the process that started this one. It may be dead already, which `os.getppid()` alone would not tell.
    """
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)


def die_with_launcher() -> None:
    """`die_with` of the launcher that started this rank."""
    die_with(int(os.environ[PARENT_VARIABLE]))


def end_with_pool() -> None:
    """Tie a worker to the run: if that is killed it ends at once, so that it writes nothing into what comes after."""
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    run.join()
    os._exit(1)
