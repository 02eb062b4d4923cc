"""What a split holds, as far as its readers must know, whoever wrote it.

The manifest says all of it. A dataset of stock tools has an index alone, which names no class and no fingerprint and
whose order need not be balanced; it is read all the same, and named by its index.
"""

import json
from dataclasses import dataclass
from typing import Any

from imagenet_mds.dataset.manifest import MANIFEST_BASENAME, WORK_FOLDER, read_manifest
from imagenet_mds.dataset.mds import INDEX_BASENAME, ShardInfo
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.storage.base import Storage

STOCK_CLASSES = 1000
"""Outputs of a network for a dataset that does not say its classes: ImageNet's."""


@dataclass(frozen=True)
class SplitInfo:
    """A split as its readers know it.

    `classes` are the folder names (wnids) in the order of their numbers, None where no manifest says them; then the
    `fingerprint` is of the index alone. `raw` says that images are stored as pixels, `packed` that shards are stored
    compressed; `shards` are what is in them. `planned_subset` is how many images the conversion was to keep, None for
    all; `samples` are fewer where some were left out.
    """

    split: str
    samples: int
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...] | None
    fingerprint: str
    raw: bool
    packed: bool = False
    planned_subset: int | None = None

    @property
    def classes_fingerprint(self) -> str | None:
        """The name of the classes in their order, as the manifest has it."""
        return None if self.classes is None else fingerprint(list(self.classes))

    @property
    def size_bytes(self) -> int:
        """Bytes of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def prefix(self, samples: int) -> list[ShardInfo]:
        """The shards that hold the first `samples` samples."""
        kept, left = [], samples
        for shard in self.shards:
            if left <= 0:
                break
            kept.append(shard)
            left -= shard.samples
        return kept


def read_split_info(split: Storage) -> SplitInfo:
    """What a split holds.

    Args:
        split: `DATASET/train` or `DATASET/val`.

    Raises:
        UserError: no dataset there, an incomplete one, or one that cannot be read.
    """
    names = split.list_names()
    if INDEX_BASENAME in names and MANIFEST_BASENAME not in names and WORK_FOLDER not in names:
        return _of_index(split)
    manifest = read_manifest(split)
    return SplitInfo(
        split=manifest.split,
        samples=manifest.samples,
        shards=tuple(manifest.shards),
        classes=tuple(entry.wnid for entry in manifest.classes),
        fingerprint=manifest.fingerprint,
        raw=manifest.policy.raw,
        planned_subset=manifest.policy.subset,
    )


def _of_index(split: Storage) -> SplitInfo:
    path = f"{split.location}/{INDEX_BASENAME}"
    try:
        index = json.loads(split.read(INDEX_BASENAME))
        shards = tuple(_shard(entry) for entry in index["shards"])
        encodings = {encoding for entry in index["shards"] for encoding in entry["column_encodings"]}
        columns = {name for entry in index["shards"] for name in entry["column_names"]}
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of MDS shards ({error!r})") from None
    if not {"x", "y"} <= columns:
        raise UserError(
            f"{split.location} has {', '.join(sorted(columns)) or 'no columns'}: give a dataset with images in x and "
            f"classes in y, as the library's StreamingImageNet has them"
        )
    return SplitInfo(
        split=split.name,
        samples=sum(shard.samples for shard in shards),
        shards=shards,
        classes=None,
        fingerprint=f"index-{fingerprint(index)}",
        raw="pil" in encodings,
        packed=any(entry.get("zip_data") for entry in index["shards"]),
    )


def _shard(entry: dict[str, Any]) -> ShardInfo:
    file = entry["raw_data"]
    return ShardInfo(file["basename"], file["bytes"], file["hashes"].get("xxh64", ""), entry["samples"])
