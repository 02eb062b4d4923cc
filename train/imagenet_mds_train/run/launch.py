"""Start the ranks of a run, watch them, and leave no process behind.

Our own instead of Composer's launcher: that one imports composer for 6 to 10 s before it starts anything, lets a rank
live only 30 s after SIGTERM (a checkpoint in flight is lost), leaves loader workers behind a killed rank, and shows no
line of the other ranks. This one imports no torch, hands an interruption on as one SIGTERM to each rank and waits for
the ranks to save, and the kernel ends every rank whose launcher dies.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, EXIT_STOPPED
from imagenet_mds.process.attempt import attempt
from imagenet_mds.process.lifetime import PARENT_VARIABLE
from imagenet_mds.process.signals import collected_stop_signals

_POLL_SECONDS = 0.1
_STOPPED_CODES = frozenset({EXIT_DONE, EXIT_STOPPED, -signal.SIGTERM, -signal.SIGKILL, 128 + signal.SIGTERM})
"""How ranks may end after an interruption: in good order, or before they had anything to save (Composer, once imported,
makes 143 of the signal), or killed because another had ended so."""

_MOURNING_SECONDS = 5.0
"""How long the other ranks may go on after one has failed: time to print their own errors, no more."""

_SAVING_SECONDS = 60.0
"""How long the other ranks may go on after an interruption when one has ended: the first still writes the checkpoint
then. It is an end too where ranks wait for one that was stopped before it met them."""

# `-c` and not `-m`: the user's folder is taken off the path before anything of ours or torch's is imported, so that a
# `train.py` or `queue.py` lying there is never run.
# First of all the rank is tied to its launcher, and a signal to stop means just that until there is something to save.
_START_RANK = """
import os, signal, sys
sys.path[:] = [path for path in sys.path if path]
signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
from imagenet_mds.process.lifetime import die_with_launcher
die_with_launcher()
from imagenet_mds_train.rank import main
main()
"""


def launch(ranks: int, order: Path, log_folder: Path, lock: int | None = None) -> int:
    """Run `ranks` processes to their end.

    Args:
        ranks: processes on this machine, one a GPU where there are GPUs.
        order: the JSON file that says what to run, read by each rank.
        log_folder: the output of every rank but the first goes to `rank<N>.log` here; the first writes to ours.
        lock: a descriptor that holds the run; the ranks hold it too, so that it is held as long as any of them lives.

    Returns:
        An exit status: done, stopped in good order, the ranks' own status 2, or failed.
    """
    with attempt() as mine, contextlib.ExitStack() as stack:
        environment = os.environ | mine.environment() | rendezvous(ranks)
        environment.setdefault("OMP_NUM_THREADS", str(max(1, len(os.sched_getaffinity(0)) // ranks)))
        processes: list[subprocess.Popen[bytes]] = []
        try:
            # From before the first rank is there: an interruption while they are started must not leave some behind.
            with collected_stop_signals(_announce_stop) as received:
                for rank in range(ranks):
                    output = None
                    if rank:
                        output = stack.enter_context(open(log_folder / f"rank{rank}.log", "ab"))
                    own = {"RANK": str(rank), "LOCAL_RANK": str(rank), PARENT_VARIABLE: str(os.getpid())}
                    processes.append(
                        subprocess.Popen(
                            [sys.executable, "-c", _START_RANK, str(order)],
                            env=environment | own,
                            pass_fds=() if lock is None else (lock,),
                            stdin=subprocess.DEVNULL,
                            stdout=output,
                            stderr=output,
                            # A session of its own: Ctrl-C in the terminal reaches us alone, and a kill reaches its
                            # workers too.
                            start_new_session=True,
                        )
                    )
                _wait(processes, received)
        finally:
            _kill(processes)
        codes = [process.returncode for process in processes]
        if received and set(codes) != {EXIT_DONE} and all(code in _STOPPED_CODES for code in codes):
            return EXIT_STOPPED
        return _status(codes, log_folder)


def rendezvous(ranks: int) -> dict[str, str]:
    """Where the ranks meet. The port is free now; nothing else on the loopback is likely to take it in a second."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    return {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "NODE_RANK": "0",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCH_NCCL_ASYNC_ERROR_HANDLING": "1",
        "PYTHONUNBUFFERED": "1",
    }


def _announce_stop() -> None:
    print("Saving, then exiting. Press Ctrl-C again to kill.", file=sys.stderr, flush=True)


def _wait(processes: list[subprocess.Popen[bytes]], received: list[int]) -> None:
    """Until all have ended, or one has and the others had their time, or a second interruption came.

    The first interruption is handed on to each rank as SIGTERM, which means: save at the end of this batch, then stop.
    """
    handed_on = False
    failed_at: float | None = None
    stopped_at: float | None = None
    while any(process.poll() is None for process in processes):
        if len(received) > 1:
            return
        if received and not handed_on:
            handed_on = True
            for process in processes:
                process.send_signal(signal.SIGTERM)
        if failed_at is None and any(process.poll() not in (None, EXIT_DONE, EXIT_STOPPED) for process in processes):
            failed_at = time.monotonic()
        if failed_at is not None and time.monotonic() - failed_at > _MOURNING_SECONDS:
            return
        if stopped_at is None and handed_on and any(process.poll() is not None for process in processes):
            stopped_at = time.monotonic()
        if stopped_at is not None and time.monotonic() - stopped_at > _SAVING_SECONDS:
            return
        time.sleep(_POLL_SECONDS)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    """End what is left, loader workers too: each rank leads a process group."""
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    for process in processes:
        process.wait()


def _status(codes: list[int], log_folder: Path) -> int:
    if all(code == EXIT_DONE for code in codes):
        return EXIT_DONE
    if all(code in (EXIT_DONE, EXIT_STOPPED) for code in codes):
        return EXIT_STOPPED
    # A rank that was killed because another had failed says nothing; the one that failed by itself does.
    own = [(rank, code) for rank, code in enumerate(codes) if code > 0 and code != EXIT_STOPPED]
    rank, code = own[0] if own else next((rank, code) for rank, code in enumerate(codes) if code)
    if rank:
        tail = (log_folder / f"rank{rank}.log").read_text(encoding="utf-8", errors="replace").splitlines()[-20:]
        print(f"rank {rank} failed; the end of {log_folder / f'rank{rank}.log'}:", *tail, sep="\n", file=sys.stderr)
    if code < 0:
        print(f"rank {rank} was ended by {signal.Signals(-code).name}", file=sys.stderr)
    return code if code > 0 else EXIT_FAILED
