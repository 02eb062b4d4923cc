"""The run of a conversion: shards by an engine, index, manifest; and the same again for what is missing."""

from collections.abc import Callable, Collection

from imagenet_mds.dataset.manifest import (
    Manifest,
)
from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import writing_to
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.cost import needed_bytes
from imagenet_mds_convert.destination import remove_partials
from imagenet_mds_convert.publish import publish
from imagenet_mds_convert.shards.build import Spent
from imagenet_mds_convert.shards.pool import Engine, run_tasks
from imagenet_mds_convert.shards.record import ShardRecord, read_record, recorded_shards

_SPARE_BYTES = 16 << 20
"""Free disk to ask for beyond the shards: index, keys, manifest, and room to breathe."""


def convert_split(
    conversion: SplitConversion,
    workers: int,
    on_shard: Callable[[ShardRecord, Spent | None], None] = lambda record, spent: None,
    engine: Engine | None = None,
) -> Manifest:
    """Make what is missing of a split, then its index, then its manifest.

    Args:
        conversion: what to make; its place must be `locked`, and `finished()` must have returned None since.
        workers: processes; the bytes do not depend on it, nor on the engine.
        on_shard: called once for each shard, with its record and, if it was made now, what it took.
        engine: what runs the shard tasks; processes of this machine if not given.

    Raises:
        UserError: the disk is too small, none of the images can be used, or another conversion was begun in the same
            place in S3.
        WorldError: a full disk, a source that fails, a lost worker, or another process that writes in the same place in
            S3; complete shards stay, and the same command continues.
    """
    destination = conversion.destination
    records: dict[int, ShardRecord] = {}
    for shard in recorded_shards(destination):
        if shard < conversion.plan.shards and (record := read_record(destination, shard, conversion.fingerprint)):
            records[shard] = record
            on_shard(record, None)
    missing = [shard for shard in range(conversion.plan.shards) if shard not in records]
    refuse_small_disk(conversion, records)
    with writing_to(destination):
        remove_partials(destination, complete=False)
        conversion.begin()
    for record, spent in (engine or run_tasks)((conversion.task(shard) for shard in missing), workers, destination):
        records[record.shard] = record
        on_shard(record, spent)
    return publish(conversion, [records[shard] for shard in range(conversion.plan.shards)])


def refuse_small_disk(conversion: SplitConversion, done: Collection[int]) -> None:
    """Ask for room for the shards that are not done.

    Raises:
        UserError: there is too little.
    """
    missing = [shard for shard in range(conversion.plan.shards) if shard not in done]
    free = conversion.destination.free_bytes()
    if not missing or free is None:
        return
    needed = needed_bytes(conversion, missing)
    if needed + _SPARE_BYTES > free:
        raise UserError(
            f"{conversion.location} needs about {needed / 1e9:,.1f} GB more "
            f"and its disk has {free / 1e9:,.1f} GB free: give a larger disk or a --subset"
        )
