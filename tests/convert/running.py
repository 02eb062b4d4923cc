"""Converting in this process: the command itself, its shard tasks done here and not in a pool."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from imagenet_mds.cli.convert import ConvertOptions, run_convert
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds_convert.shards.build import ShardTask, Spent, run_shard_task
from imagenet_mds_convert.shards.record import ShardRecord

DEFAULTS: dict[str, Any] = {
    "splits": ("train", "val"),
    "split_given": False,
    "subset": None,
    "workers": 1,
    "check": "decode",
    "shard_size": "4KiB",
    "engine": "local",
    "seed": 0,
    "plan": False,
    "strict": False,
    "overwrite": False,
    "max_side": None,
    "min_side": None,
    "quality": None,
    "log_json": False,
}


def run_tasks_here(
    tasks: Iterator[ShardTask], workers: int, destination: Storage
) -> Iterator[tuple[ShardRecord, Spent]]:
    """In place of `run_tasks`."""
    with writing_to(destination):
        for task in tasks:
            yield run_shard_task(task)


def convert_here(source: Path | str, dest: Path | str, **options: Any) -> int:
    """`imagenet-mds convert SOURCE DEST`, its status or its error."""
    return run_convert(ConvertOptions(**{**DEFAULTS, **options}, source=str(source), dest=str(dest)))
