"""Shard tasks on a Ray cluster, for conversions that outgrow one machine."""

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
    """Run shard tasks on the Ray cluster that RAY_ADDRESS names, or on one started here with so many workers.

    On a cluster every machine must reach source and destination under the same names: S3, or a shared disk. A task
    whose worker or machine is lost is done again elsewhere.

    Raises:
        UserError: Ray is not installed.
        WorldError: the storage refuses, the source's failed, or workers are lost again and again.
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
        """The tasks' results, or the error of one as it was raised there."""
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
            f"Ray gave up on a shard ({type(error).__name__}). What is complete stays: run the same command again"
        ) from error
    finally:
        if ours:
            ray.shutdown()


@contextmanager
def _our_signals() -> Iterator[None]:
    """Ray takes SIGTERM for itself when it starts, in Python and natively, and would end the run with a dump of stacks;
    behind this, signals are answered as before. One that comes meanwhile, to which Ray leaves the program, is an
    interruption as any other."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    except SystemExit:
        raise KeyboardInterrupt from None
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
