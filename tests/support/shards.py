"""Shard files in one call."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from imagenet_mds.dataset.mds import Layout, Record, ShardEncoder, decode_shard


def encode_shard(records: Sequence[Record], size_limit_bytes: int, *, half: bool = False) -> bytes:
    """The bytes of a shard file with these samples, in order.

    Raises:
        ValueError: as `ShardEncoder.add`.
    """
    encoder = ShardEncoder(len(records), Layout(size_limit_bytes, half=half))
    for record in records:
        encoder.add(record)
    return bytes(encoder.finish())


def read_shard(path: Path) -> Iterator[Record]:
    """The samples of a shard file, as `decode_shard`."""
    return decode_shard(path.read_bytes(), str(path))
