"""The stacks of all threads of a rank, written when the launcher asks for them. Imports no torch."""

import contextlib
import faulthandler
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_REQUEST = signal.SIGRTMIN
"""Batch systems and libraries send the other signals."""

_WRITING_SECONDS = 1.0


def write_stacks_on_request(file: Path) -> None:
    """Append the stacks of this process to a file whenever they are asked for. The handler needs no interpreter, so it
    works in a process that hangs in a library."""
    faulthandler.register(_REQUEST, file=open(file, "ab", buffering=0), all_threads=True)  # noqa: SIM115 # open for good


@dataclass(frozen=True)
class Stacks:
    """Where the stacks of a process come from.

    pid: the process.
    file: as it has passed it to `write_stacks_on_request`. If it has not yet, the request ends it.
    log: where they are wanted.
    """

    pid: int
    file: Path
    log: Path


def collect_stacks(processes: Sequence[Stacks], reason: str) -> None:
    """Have processes write their stacks, and append them to their logs.

    Args:
        processes: the processes.
        reason: a line for the logs.
    """
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, _REQUEST)
    time.sleep(_WRITING_SECONDS)
    when = time.strftime("%Y-%m-%d %H:%M:%S")
    for process in processes:
        stacks = process.file.read_text(encoding="utf-8", errors="replace") if process.file.exists() else ""
        with contextlib.suppress(OSError), open(process.log, "a", encoding="utf-8") as log:  # a full disk, for one
            log.write(f"{when}: {reason}; the stacks of all threads:\n{stacks or 'It wrote none.'}\n")
