"""Looking into a dataset: its stored samples by their place, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.contents import Contents
from imagenet_mds.mds import Record, decode_shard, decode_stock_shard
from imagenet_mds.storage import Readable, as_storage


@dataclass(frozen=True)
class Stored:
    """A sample and where it stands: its place in the split, the shard's file name, its place in the shard."""

    sample: int
    shard: str
    place: int
    record: Record


def stored_samples(where: Path | Readable, contents: Contents, start: int = 0) -> Iterator[Stored]:
    """The samples of a split in stored order, from number `start` on; shards before it are not read."""
    split = as_storage(where)
    decode = decode_shard if contents.classes else decode_stock_shard
    first = 0
    for shard in contents.shards:
        if first + shard.samples > start:
            data = split.read(shard.basename)
            for place, record in enumerate(decode(data, f"{split.location}/{shard.basename}")):
                if first + place >= start:
                    yield Stored(first + place, shard.basename, place, record)
        first += shard.samples
