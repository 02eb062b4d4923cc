"""Whether a configuration fits the dataset and the machine. Imports no torch."""

from typing import Literal

from imagenet_mds.dataset.access import Dataset, Split
from imagenet_mds.dataset.split_info import STOCK_CLASSES
from imagenet_mds.errors import UserError
from imagenet_mds.process.gpus import gpus
from imagenet_mds_train.config.schema import TrainConfig

_LAST_LAYER_STRIDE = 32
"""Pixels of the image to one of the last feature map of a ResNet, on each side."""


def outputs(config: TrainConfig, train: Split) -> int:
    """Outputs of the network: one for each class."""
    known = train.info.classes
    return config.model.classes or (STOCK_CLASSES if known is None else len(known))


def samples_of(config: TrainConfig, train: Split) -> int:
    """Training images, subset applied."""
    return min(config.data.subset_samples() or train.info.samples, train.info.samples)


def refuse_other_classes(dataset: Dataset, train: Split, val: Split) -> None:
    """Refuse splits of different classes.

    Raises:
        UserError: they are.
    """
    if train.info.classes_fingerprint != val.info.classes_fingerprint:
        one, other = (
            f"{'unknown' if split.info.classes is None else len(split.info.classes)} classes "
            f"({split.info.classes_fingerprint})"
            for split in (train, val)
        )
        raise UserError(f"{dataset.location}: train has {one} and val {other}: convert both splits from one source")


def refuse_other_outputs(config: TrainConfig, train: Split) -> None:
    """Refuse a network with another number of outputs than there are classes.

    Raises:
        UserError: it has one.
    """
    known = train.info.classes
    if known is not None and outputs(config, train) != len(known):
        raise UserError(
            f"model.classes={config.model.classes} and {train.storage.location} has {len(known)} classes: "
            f"pass model.classes=null"
        )


def refuse_single_values(config: TrainConfig) -> None:
    """Refuse parts of a batch of which BatchNorm would normalise one value, which torch does not.

    Raises:
        UserError: there are such parts.
    """
    smallest_px = config.size_at(0)
    if config.device_microbatch_size == 1 and smallest_px <= _LAST_LAYER_STRIDE:
        raise UserError(
            f"one image of {smallest_px} px at a time leaves BatchNorm a single value: raise global_batch_size"
        )


def device_of(config: TrainConfig) -> Literal["cpu", "gpu"]:
    """What the ranks compute on."""
    if config.system.device == "auto":
        return "gpu" if gpus() else "cpu"
    return config.system.device


def missing_gpus(config: TrainConfig, ranks_here: int) -> str | None:
    """What is wrong if the ranks of this machine lack GPUs."""
    if device_of(config) == "cpu":
        return None
    found = gpus()
    if not found:
        return (
            "this configuration trains on GPUs (system.device=gpu), and there is none here: rent a machine with one, "
            "or pass system.device=cpu to train on the processor all the same"
        )
    if found < ranks_here:
        whole = config.ranks // ranks_here * found
        return f"{ranks_here} ranks need a GPU each and there are {found}: pass --ranks {whole}"
    return None


def few_classes(train: Split) -> list[str]:
    """A note if most of the network's outputs are of classes without an image."""
    present, known = train.info.present_classes, train.info.classes
    if known is None or present is None or present == len(known):
        return []
    return [
        f"{train.storage.location} has images of {present:,} of its {len(known):,} classes, and the network gets "
        f"{len(known):,} outputs; `convert --classes present` gives one of {present:,}"
    ]
