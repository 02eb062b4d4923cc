"""Runs shard tasks in processes of this machine; `ray` runs them on a cluster. The bytes are the same.

The pool is the standard library's and the cluster is Ray's, so there is no scheduler here. A task carries everything it
needs and writes its shard itself, so nothing large crosses a pipe, and a killed run leaves only complete shards.
"""

from collections.abc import Callable, Iterator

from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds_convert.shards.build import ShardTask, Spent, images_of, run_shard_task, without_crashing
from imagenet_mds_convert.shards.lost import run_in_processes
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
    with writing_to(destination):
        yield from run_in_processes(run_shard_task, tasks, workers, images_of, without_crashing)
