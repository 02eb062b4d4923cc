"""Whether the shards on a disk are those of the manifest."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from imagenet_mds.fingerprint import file_xxh64
from imagenet_mds.manifest import ShardEntry


def shard_fault(folder: Path, shard: ShardEntry) -> str | None:
    """What is wrong with a shard file: missing, of another size, of another hash; None if it is whole."""
    path = folder / shard.basename
    try:
        size_bytes = path.stat().st_size
        if size_bytes != shard.size_bytes:
            return f"{size_bytes:,} bytes, the manifest has {shard.size_bytes:,}"
        found = file_xxh64(path)
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == shard.xxh64 else f"its content's xxh64 is {found}, the manifest has {shard.xxh64}"


def faulty_shards(
    folder: Path,
    shards: Sequence[ShardEntry],
    threads: int,
    on_shard: Callable[[ShardEntry], None] = lambda shard: None,
) -> list[tuple[ShardEntry, str]]:
    """Check shards by size and hash, several at once (hashing runs outside Python's lock).

    Returns:
        The faulty ones with what is wrong, in order.
    """
    faults = []
    with ThreadPoolExecutor(threads) as pool:
        for shard, fault in zip(shards, pool.map(lambda shard: shard_fault(folder, shard), shards), strict=True):
            if fault:
                faults.append((shard, fault))
            on_shard(shard)
    return faults
