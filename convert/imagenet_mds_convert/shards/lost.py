"""Work in processes that may be lost: by an image that crashes its decoder, or by the kernel when memory is short.

When a worker dies, the pool cannot say whose task it was. Each task that was under way is done again in a process of
its own. One that dies there too is examined: every image of it in a process of its own, and the images that crash
theirs are known by name. Where no image does, memory was short most likely, and the run ends as it can be continued.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import Connection
from typing import TypeVar

from imagenet_mds.errors import WorldError
from imagenet_mds.process.lifetime import die_with, end_with_pool, ignore_warning_signals
from imagenet_mds.process.signals import sigint_blocked, stop_was_requested

Task = TypeVar("Task")
Result = TypeVar("Result")

CRASH_REASON = "crashes the process that decodes it"
"""The beginning of the reason for which such an image is left out."""

_CRASHES = frozenset({signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGFPE})
"""Signals by which a program ends itself. SIGKILL comes from outside, when memory is short, and blames no image."""


def run_in_processes(
    function: Callable[[Task], Result],
    tasks: Iterator[Task],
    workers: int,
    parts_of: Callable[[Task], Sequence[Callable[[], object]]],
    without: Callable[[Task, Mapping[int, str]], Task],
) -> Iterator[Result]:
    """Run tasks in processes, a few in flight.

    Args:
        function: does a task; importable by name.
        tasks: the tasks; the iterator is advanced when there is room for another.
        workers: number of processes.
        parts_of: the images of a task as calls that read and decode one each; importable by name.
        without: the task without the images at these positions, each with the reason.

    Yields:
        The results, as tasks finish.

    Raises:
        WorldError: a worker was lost and no image is to blame.
        Exception: whatever a task raises.
    """
    more = True
    try:
        while more:
            lost: list[Task] = []
            more = yield from _run_until_lost(function, tasks, workers, lost)
            if lost:
                with ThreadPoolExecutor(workers) as threads:
                    yield from threads.map(lambda task: _run_alone(function, task, parts_of, without), lost)
    except MemoryError:
        raise _worker_lost() from None


def _run_until_lost(
    function: Callable[[Task], Result], tasks: Iterator[Task], workers: int, lost: list[Task]
) -> Generator[Result, None, bool]:
    """Run tasks until a worker dies or none is left; the tasks under way then are put into `lost`.

    Returns:
        Whether there may be more.
    """
    pool = _pool(workers)
    flying: dict[Future[Result], Task] = {}

    def finished() -> Iterator[Result]:
        done, _ = wait(flying, return_when=FIRST_COMPLETED)
        for future in done:
            task = flying.pop(future)
            try:
                result = future.result()
            except BrokenProcessPool:
                lost.append(task)
            else:
                yield result

    try:
        for task in tasks:
            try:
                with sigint_blocked():
                    flying[pool.submit(function, task)] = task
            except BrokenProcessPool:
                lost.append(task)
            if lost or len(flying) > 2 * workers:
                yield from finished()
            if lost:
                break
        while flying:
            yield from finished()
    finally:
        pool.shutdown(cancel_futures=True)
    return bool(lost)


def _pool(workers: int) -> ProcessPoolExecutor:
    # spawn, because the live progress line is a thread, and a fork with threads may hang.
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_pool)


def _run_alone(
    function: Callable[[Task], Result],
    task: Task,
    parts_of: Callable[[Task], Sequence[Callable[[], object]]],
    without: Callable[[Task, Mapping[int, str]], Task],
) -> Result:
    """Do a task in a process of its own, without the images that crash it."""
    for attempt in range(2):
        pool = _pool(1)
        try:
            with sigint_blocked():
                future = pool.submit(function, task)
            return future.result()
        except BrokenProcessPool:
            # After a second Ctrl-C the workers were killed by us, and no image is to blame.
            examined = attempt == 0 and not stop_was_requested()
            crashing = find_crashing(parts_of, task) if examined else {}
            if not crashing:
                break
            task = without(task, crashing)
        finally:
            pool.shutdown(cancel_futures=True)
    raise _worker_lost()


def _worker_lost() -> WorldError:
    return WorldError(
        "a worker process was lost (killed, or out of memory). Finished shards are kept: "
        "run the same command again, with fewer --workers if memory is short"
    )


def find_crashing(parts_of: Callable[[Task], Sequence[Callable[[], object]]], task: Task) -> dict[int, str]:
    """The positions of the images of a task that crash their process, each with the reason."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    helper = multiprocessing.get_context("spawn").Process(target=_examine, args=(parts_of, task, os.getpid(), theirs))
    with sigint_blocked():
        helper.start()
    theirs.close()
    found: dict[int, str] = {}
    try:
        while True:
            position, number = ours.recv()
            found[position] = f"{CRASH_REASON} ({signal.Signals(number).name})"
    except EOFError:
        helper.join()
    return found


def _examine(
    parts_of: Callable[[Task], Sequence[Callable[[], object]]], task: Task, parent: int, send: Connection
) -> None:
    """Do each image of a task in a process forked for it, and send the position and signal of each that crashes."""
    die_with(parent)
    ignore_warning_signals()
    try:
        parts = parts_of(task)
    except OSError:  # the storage fails, which the task itself will say
        return
    for position, part in enumerate(parts):
        child = os.fork()
        if child == 0:
            try:
                part()
            except BaseException:  # errors are dealt with when the task is done; only crashes count
                pass
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) in _CRASHES:
            send.send((position, os.WTERMSIG(status)))
    send.close()
    sys.stderr.flush()
