"""What the commands that start the ranks of a run check and print, on node 0 and on the others."""

import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

from imagenet_mds.cli.tables import print_note

if TYPE_CHECKING:
    from imagenet_mds_train.run.start import Start


def print_notes(lines: Iterable[str | None]) -> None:
    """Print those that are not None as notes."""
    for line in lines:
        if line:
            print_note(line)


def check_data(start: "Start") -> None:
    """See that the shards are there, and whole as far as they are on this machine.

    Raises:
        WorldError: they are not.
    """
    from imagenet_mds.dataset.access import check_available
    from imagenet_mds.progress import ProgressLine

    check_available(start.shards())
    for split, shards in start.shards():
        if split is start.train:
            print_notes([split.cache_too_small(shards, start.config.data.order.shuffle_block_size)])
    if start.config.data.verify_shards:
        count = sum(len(shards) for _, shards in start.shards())
        with ProgressLine("verifying shards", count, "shards") as progress:
            warnings = start.verify_shards(lambda shard: progress.advance(1))
        print_notes(warnings)


def print_given_up(why: str) -> None:
    """Print why the ranks are not started again."""
    print(f"imagenet-mds: not restarted: {why}", file=sys.stderr, flush=True)
