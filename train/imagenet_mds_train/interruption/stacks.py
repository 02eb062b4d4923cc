"""The stacks of all threads of a rank, written when the launcher asks for them. Imports no torch."""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

_REQUEST = signal.SIGRTMIN
"""Batch systems and libraries send the other signals."""

_WRITING_SECONDS = 1.0


def write_stacks_on_request(log: Path) -> None:
    """Append the stacks of this process to a file whenever they are asked for. The handler needs no interpreter, so it
    works in a process that hangs in a library."""
    faulthandler.register(_REQUEST, file=open(log, "ab", buffering=0), all_threads=True)  # noqa: SIM115 # open for good


def ask_for_stacks(ranks: Iterable[tuple[int, Path]], reason: str) -> None:
    """Have ranks write their stacks, and wait for it. The request ends a rank that has not called
    `write_stacks_on_request` yet.

    Args:
        ranks: the process and the log of each.
        reason: a line for the logs.
    """
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    for pid, log in ranks:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{when}: {reason}; the stacks of all threads:\n")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, _REQUEST)
    time.sleep(_WRITING_SECONDS)
