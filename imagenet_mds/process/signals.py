"""Handling of the signals that ask the program to stop: SIGINT (Ctrl-C), SIGTERM and SIGHUP.

A signal that is ignored when the process starts, as SIGHUP is under nohup, stays ignored.
"""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType

from imagenet_mds.errors import EXIT_STOPPED

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

STOPPED_MESSAGE = "imagenet-mds: stopped; finished work is kept, run the same command again to continue\n"

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
    handle_stop_signals(_kill_workers)
    raise KeyboardInterrupt


def _kill_workers(*_: object) -> None:
    """Second signal: kill the workers. Interrupting the wait for them would leave the pool unable to shut down."""
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


@contextlib.contextmanager
def collected_stop_signals(on_first: Callable[[], None]) -> Iterator[list[int]]:
    """Collect the stop signals that arrive in the block in a list that grows, and call `on_first` at the first one."""
    received: list[int] = []

    def receive(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) == 1:
            on_first()

    before = {number: signal.signal(number, receive) for number in _not_ignored()}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
