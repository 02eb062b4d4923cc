"""The job of the ranks, which the launcher writes and each rank reads."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.dataset.decompress import UnpackedSplit
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.atomic import write_json


@dataclass(frozen=True)
class RankJob:
    """What the ranks are to do; the launcher writes it as JSON and each rank reads it.

    `train` and `val` are the splits' shard caches, see `shard_cache_as_json`. `checkpoint` is the file to continue
    from, None at the start of a run. Sizes are in samples, with the subset applied.
    """

    config: dict[str, Any]
    run_folder: str
    train: dict[str, Any]
    val: dict[str, Any]
    train_samples: int
    val_samples: int
    classes: list[str]
    identity: dict[str, Any]
    checkpoint: str | None
    attempt: int

    def write(self, path: Path) -> None:
        """Write the order for the ranks."""
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RankJob":
        """Read an order that `write` wrote."""
        return cls(**json.loads(path.read_bytes()))


def shard_cache_as_json(shard_cache: ShardCache) -> dict[str, Any]:
    """A split's shard_cache in an order."""
    remote = shard_cache.remote.location if shard_cache.remote else None
    packed = isinstance(shard_cache.remote, UnpackedSplit)
    return {
        "folder": str(shard_cache.folder),
        "remote": remote,
        "packed": packed,
        "limit_bytes": shard_cache.limit_bytes,
    }


def shard_cache_from_json(value: dict[str, Any]) -> ShardCache:
    """What `shard_cache_as_json` wrote."""
    remote = open_storage(value["remote"]) if value["remote"] else None
    return ShardCache(
        Path(value["folder"]), UnpackedSplit(remote) if remote and value["packed"] else remote, value["limit_bytes"]
    )
