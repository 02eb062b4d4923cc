"""Comparing stored shards with the manifest, or with the index if there is no manifest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.storage.base import Storage, stored_xxh64


def shard_fault(split: Storage, shard: ShardInfo) -> str | None:
    """Return what is wrong with a shard: missing, unreadable, of another size or hash; None if nothing is.

    A shard without a recorded hash is compared by its size alone.
    """
    try:
        size_bytes = split.size_bytes(shard.basename)
        if size_bytes is None:
            return "missing"
        if size_bytes != shard.size_bytes:
            return f"{size_bytes:,} bytes, the manifest has {shard.size_bytes:,}"
        found = stored_xxh64(split, shard.basename) if shard.xxh64 else ""
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == shard.xxh64 else f"its content's xxh64 is {found}, the manifest has {shard.xxh64}"


def faulty_shards(
    split: Storage,
    shards: Sequence[ShardInfo],
    threads: int,
    on_shard: Callable[[ShardInfo], None] = lambda shard: None,
) -> list[tuple[ShardInfo, str]]:
    """Check shards by size and hash, `threads` at once: hashing releases Python's global lock.

    Args:
        split: the storage of the shards.
        shards: the shards as the manifest or index describes them.
        threads: number of shards to hash at once.
        on_shard: called after each shard.

    Returns:
        The faulty shards with what is wrong, in the order of `shards`.
    """
    faults = []
    with ThreadPoolExecutor(threads) as pool:
        for shard, fault in zip(shards, pool.map(lambda shard: shard_fault(split, shard), shards), strict=True):
            if fault:
                faults.append((shard, fault))
            on_shard(shard)
    return faults
