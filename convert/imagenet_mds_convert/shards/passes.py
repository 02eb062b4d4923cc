"""The tasks of a conversion in passes. A source that is read image by image needs one pass of all shards.

From another one (parquet), where an image costs reading its row group, the images of as many shards as fit into a
stated part of the disk are gathered in each pass, by reading each row group once. The shards are then made from there.
"""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from imagenet_mds.errors import WorldError
from imagenet_mds.storage.base import after_failed_write
from imagenet_mds_convert.shards.build import ShardTask
from imagenet_mds_convert.sources.base import Gatherer, Track, untracked
from imagenet_mds_convert.sources.gathered import GatheredImages, gathering

GATHERED_BYTES = 32 << 30
"""The most that one pass takes of the disk beside the shards. All of ImageNet takes five such passes."""


def in_passes(
    tasks: Iterator[ShardTask],
    gatherer: Gatherer | None,
    most_bytes: int,
    folder: Path | None,
    track: Track = untracked,
) -> Iterator[Iterator[ShardTask]]:
    """Tasks in passes; the tasks of one are to be done before the next one is asked for.

    Args:
        tasks: the tasks; of a source without a gatherer, one pass has all.
        gatherer: the source's.
        most_bytes: the most that the gathered images of a pass may take of the disk.
        folder: the disk to gather on; None for TMPDIR's.
        track: shows the progress.

    Raises:
        UserError: a file of the source cannot be read.
        WorldError: the disk is full.
    """
    if gatherer is None:
        yield tasks
        return
    for run in runs_within(tasks, most_bytes):
        with gathered(gatherer, run, folder, track) as ready:
            yield iter(ready)


def runs_within(tasks: Iterator[ShardTask], most_bytes: int) -> Iterator[list[ShardTask]]:
    """Tasks in runs whose images have at most `most_bytes` in the source; a task alone may have more."""
    run: list[ShardTask] = []
    size_bytes = 0
    for task in tasks:
        more = sum(sample.size_bytes for _, sample in task.samples)
        if run and size_bytes + more > most_bytes:
            yield run
            run, size_bytes = [], 0
        run.append(task)
        size_bytes += more
    if run:
        yield run


@contextmanager
def gathered(
    gatherer: Gatherer, tasks: Sequence[ShardTask], folder: Path | None, track: Track = untracked
) -> Iterator[list[ShardTask]]:
    """Gather the images of these tasks, and yield the tasks as they read from there.

    Args:
        gatherer: the source's.
        tasks: the tasks of a pass.
        folder: the disk to gather on; None for TMPDIR's.
        track: shows the progress.

    Raises:
        UserError: a file of the source cannot be read.
        WorldError: the disk is full.
    """
    samples = [sample for task in tasks for _, sample in task.samples]
    with gathering(folder) as file:
        try:
            where = gatherer.gather(samples, file, track)
        except OSError as error:
            raise WorldError(
                f"images cannot be gathered in {folder or tempfile.gettempdir()}: {error.strerror or error}. Finished "
                f"shards are kept: {after_failed_write(error)}"
            ) from error
        source = GatheredImages(file.path)
        yield [
            replace(
                task,
                source=source,
                samples=tuple((index, replace(sample, where=where[sample.where])) for index, sample in task.samples),
            )
            for task in tasks
        ]
