"""Handling of the signals that ask the program to stop: SIGINT (Ctrl-C), SIGTERM, SIGHUP, and the two that batch
systems such as SLURM send as a warning, SIGUSR1 and SIGUSR2.

A signal that is ignored when the process starts, as SIGHUP is under nohup, stays ignored. A second signal means that
the sender does not want to wait. But supervisors and wrapper scripts pass on what they receive, so that one request may
arrive several times: only Ctrl-C counts again within the first seconds.
"""

import contextlib
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from types import FrameType

from imagenet_mds.errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)

REPEAT_SECONDS = 5.0
"""How long after a request to stop other signals than Ctrl-C are taken for the same request."""

STOPPED_MESSAGE = "imagenet-mds: stopped; finished work is kept, run the same command again to continue\n"

_first_at = 0.0
"""When `stop_cleanly` was called, in seconds of the monotonic clock."""

Handler = Callable[[int, FrameType | None], None]


def handle_stop_signals(handler: Handler | signal.Handlers) -> None:
    """Install one handler for every stop signal that is not ignored."""
    for number in _not_ignored():
        signal.signal(number, handler)


def _not_ignored() -> list[signal.Signals]:
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def stop_cleanly(*_: object) -> None:
    """First signal: raise KeyboardInterrupt, so that workers finish their shards.

    Raises:
        KeyboardInterrupt: always.
    """
    global _first_at
    _first_at = time.monotonic()
    handle_stop_signals(_kill_workers)
    raise KeyboardInterrupt


def stop_was_requested() -> bool:
    """Whether `stop_cleanly` was called."""
    return _first_at > 0


def _is_repeated(number: int, first_at: float) -> bool:
    """Whether a signal is most likely the same request as one that came at `first_at`."""
    return number != signal.SIGINT and time.monotonic() - first_at < REPEAT_SECONDS


def _kill_workers(number: int, frame: FrameType | None) -> None:
    """Second signal: kill the workers. Interrupting the wait for them would leave the pool unable to shut down."""
    if _is_repeated(number, _first_at):
        return
    from multiprocessing import active_children  # already imported if there are workers

    handle_stop_signals(_exit_now)
    workers = active_children()
    for worker in workers:
        worker.kill()
    if not workers:
        _exit_now()


def _exit_now(*_: object) -> None:
    """Third signal, or a second one without workers: exit at once."""
    with contextlib.suppress(OSError, RuntimeError):  # the signal may have interrupted a write
        sys.stdout.flush()
    cursor = "\r\x1b[?25h" if sys.stderr.isatty() else ""  # the progress line hides the cursor
    os.write(sys.stderr.fileno(), f"{cursor}{STOPPED_MESSAGE}".encode("ascii"))
    os._exit(EXIT_STOPPED)


@contextlib.contextmanager
def sigint_blocked() -> Iterator[None]:
    """Block SIGINT in this process, and for good in processes started inside the block.

    The parent handles Ctrl-C and lets its workers finish. A signal that arrives in the block is delivered to it at the
    end.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class StopRequests:
    """The requests to stop that have arrived.

    Args:
        on_first: called at the first one.
    """

    def __init__(self, on_first: Callable[[], None]) -> None:
        self._on_first = on_first
        self._first_at = 0.0
        self.count = 0

    def receive(self, number: int, frame: FrameType | None = None) -> None:
        """Count a signal, unless it is a request that has arrived already."""
        if self.count and _is_repeated(number, self._first_at):
            return
        self.count += 1
        if self.count == 1:
            self._first_at = time.monotonic()
            self._on_first()

    def announce(self) -> bool:
        """Count an announcement that this machine stops, and return whether it is the first request. The signals of
        other programs that have read it are the same request whenever they come."""
        is_first = self.count == 0
        self.count = max(1, self.count)
        self._first_at = math.inf
        return is_first


@contextlib.contextmanager
def collected_stop_signals(on_first: Callable[[], None]) -> Iterator[StopRequests]:
    """Collect the requests to stop that arrive in the block. Call `on_first` at the first one."""
    requests = StopRequests(on_first)
    before = {number: signal.signal(number, requests.receive) for number in _not_ignored()}
    try:
        yield requests
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
