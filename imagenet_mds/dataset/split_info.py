"""What readers need to know about a split, whether this program or stock tools wrote it.

Our manifest has all of it. Stock tools write an index alone, without class names and fingerprint, and their order need
not be balanced. Such a dataset is read all the same, and identified by its index.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from imagenet_mds.dataset.manifest import KEYS_BASENAME, MANIFEST_BASENAME, WORK_FOLDER, read_manifest
from imagenet_mds.dataset.mds import INDEX_BASENAME, ShardInfo
from imagenet_mds.dataset.stock_shards import holds_images, holds_labels
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.storage.base import Storage

STOCK_CLASSES = 1000
"""Outputs of a network for a dataset without class names: ImageNet's number of classes."""


@dataclass(frozen=True)
class SplitInfo:
    """What readers need to know about a split.

    Attributes:
        split: name of the split.
        samples: number of stored samples.
        shards: the shards in order. If they are stored compressed, these are the decompressed ones.
        classes: folder names (wnids) by label; None without a manifest.
        fingerprint: identifies the content; without a manifest it is that of the index.
        raw: images are stored as pixels.
        packed: shards are stored compressed.
        planned_subset: number of images that the conversion was asked to keep, None for all. `samples` is smaller if
            some could not be used.
        present_classes: number of classes that have an image; None without a manifest.
    """

    split: str
    samples: int
    shards: tuple[ShardInfo, ...]
    classes: tuple[str, ...] | None
    fingerprint: str
    raw: bool
    packed: bool = False
    planned_subset: int | None = None
    present_classes: int | None = None

    @property
    def classes_fingerprint(self) -> str | None:
        """Identifies the classes and their order, as in the manifest; None without class names."""
        return None if self.classes is None else fingerprint(list(self.classes))

    @property
    def size_bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.size_bytes for shard in self.shards)

    def prefix(self, samples: int) -> list[ShardInfo]:
        """Return the shards that hold the first `samples` samples."""
        kept, left = [], samples
        for shard in self.shards:
            if left <= 0:
                break
            kept.append(shard)
            left -= shard.samples
        return kept


def read_split_info(split: Storage) -> SplitInfo:
    """Read what a split holds from its manifest, or from its index if there is no manifest.

    Args:
        split: `DATASET/train` or `DATASET/val`.

    Raises:
        UserError: there is no dataset, or it is incomplete or cannot be read.
    """
    names = split.list_names()
    # A split with keys is ours, and has lost its manifest.
    if INDEX_BASENAME in names and not {MANIFEST_BASENAME, KEYS_BASENAME, WORK_FOLDER} & set(names):
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
        present_classes=sum(entry.samples > 0 for entry in manifest.classes),
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
        raise UserError(f"{path} is not an index of MDS shards ({error!r})") from None
    if encoding := _other_encoding(index["shards"], "y", holds_labels):
        raise UserError(
            f"{split.location} has labels in y as {encoding}: "
            f"give a dataset with class numbers there, as numbers or text"
        )
    if encoding := _other_encoding(index["shards"], "x", holds_images):
        raise UserError(
            f"{split.location} has x as {encoding}: "
            f"give a dataset with images there, one in each sample, as jpeg, png, pil or bytes"
        )
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


def _other_encoding(shards: list[dict[str, Any]], column: str, known: Callable[[str], bool]) -> str | None:
    """The encoding of a column that is not one of those known, None where all shards' are."""
    for entry in shards:
        encodings = dict(zip(entry["column_names"], entry["column_encodings"], strict=False))
        if column in encodings and not known(encodings[column]):
            return str(encodings[column])
    return None


def _shard(entry: dict[str, Any]) -> ShardInfo:
    file = entry["raw_data"]
    return ShardInfo(file["basename"], file["bytes"], file["hashes"].get("xxh64", ""), entry["samples"])
