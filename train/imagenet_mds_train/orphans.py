"""No process outlives the one that started it, even if that one is killed."""

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(_worker: int = 0) -> None:
    """Ask the kernel for SIGKILL when the parent dies. Linux only; elsewhere nothing happens.

    Takes and ignores a worker number, so that it can be a DataLoader's `worker_init_fn`.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before the call
        os.kill(os.getpid(), signal.SIGKILL)
