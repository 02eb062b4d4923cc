"""What `inspect` and `preview` share: stored samples with the names of their classes, and training batches."""

import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING

from imagenet_mds.errors import UserError

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Split
    from imagenet_mds.dataset.split_info import SplitInfo
    from imagenet_mds.storage.base import Readable, Storage
    from imagenet_mds_train.config.schema import TrainConfig
    from imagenet_mds_train.data.peek import Seen


def split_with_sample(dataset: str, split: str, sample: int) -> "tuple[Readable, SplitInfo, list[str] | None]":
    """Open a split and check that it has a sample.

    Returns:
        The split, what it holds, and its class names, None if the dataset has none.

    Raises:
        UserError: there is no such split, or it has no such sample.
    """
    from imagenet_mds.dataset.decompress import unpacked
    from imagenet_mds.dataset.split_info import read_split_info
    from imagenet_mds.storage import open_storage

    storage = open_storage(dataset).child(split)
    info = read_split_info(storage)
    if sample >= info.samples:
        raise UserError(f"{storage.location} has no sample {sample:,}: it has {info.samples:,}, counted from 0")
    return unpacked(storage, info), info, class_names(storage, info)


def class_names(split: "Storage", info: "SplitInfo") -> list[str] | None:
    """Return the readable name of each class by its label, None if the dataset has no manifest.

    Raises:
        UserError: the manifest cannot be read.
    """
    from imagenet_mds.dataset.manifest import read_manifest

    return [entry.name for entry in read_manifest(split).classes] if info.classes else None


def class_name(names: list[str] | None, label: int) -> str:
    """Return the name of a class, or its number if the dataset has no names."""
    return names[label] if names else f"class {label}"


def training_batch(
    train: "Split", config: "TrainConfig", epoch: int, batch: int, workers: int | None
) -> "Iterator[Seen]":
    """Iterate over one batch as training sees it.

    Args:
        train: the training split.
        config: the training configuration.
        epoch: counted from 0.
        batch: counted from 0, within the epoch.
        workers: loader workers of each rank, None for those of the configuration.

    Raises:
        UserError: there is no such batch, or training refuses the dataset.
    """
    warnings.simplefilter("ignore")  # torch and Composer warn about what they deprecate
    from imagenet_mds_train.config.workers import workers_of
    from imagenet_mds_train.data.peek import training_batch as batch_of

    workers = workers_of(config.data.workers_per_rank, config.ranks) if workers is None else workers
    return batch_of(config, train, epoch=epoch, batch=batch, workers=workers)
