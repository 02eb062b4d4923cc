"""Runs shard tasks in processes of this machine; `ray` runs them on a cluster. The bytes are the same.

The pool is the standard library's and the cluster is Ray's, so there is no scheduler here. A task carries everything it
needs and writes its shard itself, so nothing large crosses a pipe, and a killed run leaves only complete shards.
"""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from imagenet_mds.errors import WorldError
from imagenet_mds.process.lifetime import end_with_pool
from imagenet_mds.process.signals import sigint_blocked
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds_convert.shards.build import ShardTask, Spent, run_shard_task
from imagenet_mds_convert.shards.record import ShardRecord

Engine = Callable[[Iterator[ShardTask], int, Storage], Iterator[tuple[ShardRecord, Spent]]]
"""Runs tasks with a number of workers, a few in flight, and yields their results as they finish."""


def run_tasks(tasks: Iterator[ShardTask], workers: int, destination: Storage) -> Iterator[tuple[ShardRecord, Spent]]:
    """Run shard tasks in processes, a few in flight.

    Args:
        tasks: the tasks; the iterator is advanced when there is room for another.
        workers: number of processes.
        destination: where the tasks write, for error messages.

    Yields:
        The record of each shard and the seconds spent, as tasks finish.

    Raises:
        UserError: the images of a shard are too long together.
        WorldError: the disk cannot be written, the source's storage failed, or a worker was lost.
    """
    # spawn, because the live progress line is a thread, and a fork with threads may hang.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_pool)
    flying: set[Future[tuple[ShardRecord, Spent]]] = set()
    try:
        with writing_to(destination):
            for task in tasks:
                with sigint_blocked():
                    flying.add(pool.submit(run_shard_task, task))
                if len(flying) > 2 * workers:
                    done, flying = wait(flying, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while flying:
                done, flying = wait(flying, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
    except (BrokenProcessPool, MemoryError):
        raise WorldError(
            "a worker process was lost (killed, or out of memory). Finished shards are kept: "
            "run the same command again, with fewer --workers if memory is short"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)
