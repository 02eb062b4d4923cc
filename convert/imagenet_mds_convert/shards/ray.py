"""Runs shard tasks on a Ray cluster, for conversions too large for one machine."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds.storage.retry import LOST_TASK_RETRIES
from imagenet_mds_convert.shards.build import ShardTask, Spent, run_shard_task
from imagenet_mds_convert.shards.record import ShardRecord


def run_tasks_on_ray(
    tasks: Iterator[ShardTask], workers: int, destination: Storage
) -> Iterator[tuple[ShardRecord, Spent]]:
    """Run shard tasks on the Ray cluster at RAY_ADDRESS, or on one that is started here.

    On a cluster, every machine must reach source and destination under the same names: S3, or a shared disk. A task
    whose worker or machine is lost runs again elsewhere.

    Args:
        tasks: the tasks; the iterator is advanced when there is room for another.
        workers: number of processes of a cluster started here, and half the number of tasks in flight.
        destination: where the tasks write, for error messages.

    Yields:
        The record of each shard and the seconds spent, as tasks finish.

    Raises:
        UserError: Ray is not installed, or the images of a shard are too long together.
        WorldError: the storage cannot be written, the source's storage failed, or workers are lost repeatedly.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--engine ray needs Ray: pip install 'imagenet-mds[ray]'") from None

    ours = not ray.is_initialized()
    with _our_signals():
        if ours and "RAY_ADDRESS" in os.environ:
            ray.init(log_to_driver=False)
        elif ours:
            ray.init(address="local", num_cpus=workers, include_dashboard=False, log_to_driver=False)
    remote = ray.remote(num_cpus=1, max_retries=LOST_TASK_RETRIES)(run_shard_task)
    flying = []

    def collect(done: list[Any]) -> list[tuple[ShardRecord, Spent]]:
        """The tasks' results, or the error of one as the task raised it."""
        try:
            results: list[tuple[ShardRecord, Spent]] = ray.get(done)
        except ray.exceptions.RayTaskError as error:
            raise error.cause from None
        return results

    try:
        with writing_to(destination):
            for task in tasks:
                flying.append(remote.remote(task))
                if len(flying) > 2 * workers:
                    done, flying = ray.wait(flying)
                    yield from collect(done)
            while flying:
                done, flying = ray.wait(flying)
                yield from collect(done)
    except ray.exceptions.RayError as error:
        raise WorldError(
            f"Ray gave up on a shard ({type(error).__name__}). Finished shards are kept: run the same command again"
        ) from error
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _our_signals() -> Iterator[None]:
    """Restore the signal handlers that Ray replaces when it starts.

    Ray takes over SIGTERM, in Python and natively, and would end the run with a dump of stacks. If a signal arrives
    while Ray starts, Ray exits the program; that exit is turned into an interruption like any other.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
