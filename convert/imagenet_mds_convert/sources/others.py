"""Formats that are not taken, recognised so that the message says what was found and what to do."""

import re
from collections.abc import Callable

from imagenet_mds.dataset.manifest import MANIFEST_BASENAME
from imagenet_mds.dataset.mds import INDEX_BASENAME
from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.folders import names_in

TAKEN = (
    "class folders in train/ and val/, the ILSVRC2012 archives, tars of classes, WebDataset tars, Kaggle's download, "
    "Hugging Face's parquet files, CIFAR-10's python batches"
)

_CIFAR_100_FILES = frozenset(("train", "test", "meta"))
"""What lies in the folder `cifar-100-python`."""


def _named(pattern: str) -> Callable[[str], bool]:
    return lambda name: re.fullmatch(pattern, name, re.IGNORECASE) is not None


_FORMATS: tuple[tuple[Callable[[str], bool], str], ...] = (
    (
        lambda name: name in (MANIFEST_BASENAME, INDEX_BASENAME) or _named(r"shard\.\d{5}\.mds(\.\w+)?")(name),
        "is a finished MDS dataset: train from it with `imagenet-mds train --data`; to convert again, give its source",
    ),
    (
        _named(r".*\.beton"),
        "holds ffcv's .beton files, whose images are encoded anew: give the images they were made of",
    ),
    (
        _named(r".*\.tfrecords?(-\d+-of-\d+)?(\.\w+)?|(train|validation|test)-\d{5}-of-\d{5}"),
        "holds TFRecord files: give the images that they were made of",
    ),
    (
        _named(r"(train|val)\.X\d*"),
        "is Kaggle's ImageNet-100: move the class folders of train.X1 to train.X4 into train/, and those of val.X into "
        "val/",
    ),
    (
        _named(r"(?!ILSVRC2012_(devkit|bbox)).*\.(zip|7z|rar|tar\.(gz|bz2|xz|zst|lz4|Z)|tgz|tbz2?|txz|tzst)"),
        "holds an archive that is still packed ({name}): unpack it and give its folder",
    ),
    (
        _named(r"(cifar-10-(python|binary)|cifar-100-.*|tiny-imagenet.*|imagenet.*|winter21.*|fall11.*)\.tar"),
        "holds an archive that is still packed ({name}): unpack it and give its folder",
    ),
    (
        _named(r"data_batch_\d\.bin|test_batch\.bin|cifar-10-batches-bin"),
        "is CIFAR-10's binary version: give the python version",
    ),
    (_named(r"batches\.meta"), "has batches.meta but no batches: download it again"),
    (
        _named(r"data_batch_\d|test_batch|cifar-10-batches-py"),
        "holds CIFAR-10's batches without batches.meta: download it again",
    ),
    (_named(r".*idx\d-ubyte(\.gz)?"), "holds IDX files, as MNIST has them, which are not taken"),
    (_named(r"cifar-100-python|fine_label_names.*"), "is CIFAR-100, which is not taken"),
    (
        _named(r".*\.arrow|dataset_dict\.json|dataset_info\.json"),
        "is a saved Hugging Face dataset (Arrow): give its parquet files, or hf://",
    ),
    (
        _named(r"partial-(train|validation)"),
        "holds a part of a dataset that the hub converted ({name}): download the parquet files of its data/",
    ),
    (_named(r"(data|lock)\.mdb|.*\.lmdb"), "is an LMDB: give the images that it was made of"),
    (_named(r".*\.(rec|idx)"), "holds MXNet's record files: give the images that they were made of"),
    (
        _named(r".*\.(h5|hdf5|npz|npy)"),
        "holds arrays ({name}), not image files: give the images that they were made of",
    ),
    (
        _named(r"(train|val|test)_data_batch_\d+|val_data"),
        "is the downsampled ImageNet (32 or 64 pixels), not image files",
    ),
)


def other_format(*folders: Storage) -> str | None:
    """What is in these folders, if it is a format that is known and not taken: the end of a sentence.

    Raises:
        UserError: a folder cannot be listed.
    """
    for folder in folders:
        names = names_in(folder)
        if set(names) >= _CIFAR_100_FILES:
            names = ["cifar-100-python"]
        for matches, what in _FORMATS:
            if name := next(filter(matches, names), None):
                return f"{folder.location} {what.format(name=name)}. Taken are: {TAKEN}"
    return None


def refusal(message: str, *folders: Storage) -> UserError:
    """The error that says what these folders hold if that is known, and else the message."""
    return UserError(other_format(*folders) or message)
