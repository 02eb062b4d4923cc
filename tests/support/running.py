"""Converting in this process: the command itself, with its shard tasks run here instead of in a pool."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_mds.cli.convert import convert
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds_convert.shards.build import ShardTask, Spent, run_shard_task
from imagenet_mds_convert.shards.record import ShardRecord


def run_tasks_here(
    tasks: Iterator[ShardTask], workers: int, destination: Storage
) -> Iterator[tuple[ShardRecord, Spent]]:
    """Run shard tasks in this process; takes the place of `run_tasks`."""
    with writing_to(destination):
        for task in tasks:
            yield run_shard_task(task)


def convert_here(source: Path | str, dest: Path | str, **options: Any) -> int:
    """Run the command `convert` with one worker and small shards unless told otherwise. Returns its exit status."""
    defaults: dict[str, Any] = {"workers": 1, "shard_size": "4KiB"}
    return convert(str(source), str(dest), **defaults | options)
