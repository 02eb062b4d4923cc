"""What made a rank end, in one line that names the process, the likely cause and what to do. Imports no torch."""

import re
import signal

EXIT_PEER_LOST = 76
"""Exit status of a rank that ends because another one has; it is not the one to report."""

EXIT_PORT_TAKEN = 77
"""Exit status of a rank that could not listen on the port of the start; another port will do."""

_WORKER = re.compile(r"DataLoader worker \(pid\S* [^)]*\) (?:is killed by signal: ([^.]+)\.|exited unexpectedly)")
_PEER = re.compile(
    r"Connection (closed|reset) by peer|Broken pipe|remote process exited|Socket closed|NCCL (communicator|error)"
)
_OUT_OF_MEMORY = (
    "was killed, most likely by the kernel because memory ran out (`dmesg` says so): pass a smaller "
    "data.workers_per_rank, data.prefetch_batches or global_batch_size, and run the same command again to continue"
)


def worker_failure(message: str, rank: int) -> str | None:
    """The line for an error that says that a loader worker of a rank was lost; None for another error.

    Args:
        message: the error's.
        rank: whose worker it is.
    """
    match = _WORKER.search(message)
    if match is None:
        return None
    how, who = match[1], f"a loader worker of rank {rank}"
    if how == "Killed" or how is None:
        return f"{who} {_OUT_OF_MEMORY}"
    return f"{who} ended ({how}), probably at an image that its decoder cannot take: `verify --deep` finds such images"


def is_peer_lost(message: str) -> bool:
    """Whether an error only says that another rank is gone."""
    return _PEER.search(message) is not None


def is_port_taken(message: str) -> bool:
    """Whether an error says that another program listens on the port by which the ranks find each other."""
    return re.search(r"EADDRINUSE|[Aa]ddress already in use", message) is not None


def killed_rank(rank: int, number: int) -> str:
    """The line for a rank that a signal ended.

    Args:
        rank: its number.
        number: the signal's.
    """
    if number == signal.SIGKILL:
        return f"rank {rank} {_OUT_OF_MEMORY}"
    return f"rank {rank} was ended by {signal.Signals(number).name}: run the same command again to continue"
