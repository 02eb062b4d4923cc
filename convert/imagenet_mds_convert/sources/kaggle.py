"""Kaggle's layout of ImageNet: `ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG`, a flat `ILSVRC/Data/CLS-LOC/val/*.JPEG`, and
the labels of `val` in `LOC_val_solution.csv` beside `ILSVRC/`; on a disk or in S3.

Keys are those of the extracted tree, so the same images give the same shards.
"""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Sample, SourceDefaults
from imagenet_mds_convert.sources.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.sources.folders import (
    class_folder_images,
    folders_in,
    image_files,
    read_class_names,
    some,
    sorted_by_key,
)
from imagenet_mds_convert.sources.parallel import reads_at_once

SOLUTION_BASENAME = "LOC_val_solution.csv"
_IMAGES = ("ILSVRC", "Data", "CLS-LOC")


def find_kaggle(storage: Storage) -> tuple[Storage, Storage] | None:
    """The folder that holds `train/` and `val/`, and the one that holds the CSV files, if this is Kaggle's layout.

    Args:
        storage: the folder that holds `ILSVRC/`, `ILSVRC` itself or its `Data/CLS-LOC`.
    """
    if isinstance(storage, LocalStorage):
        storage = LocalStorage(storage.root.resolve())  # `.` has neither a name nor a parent
    for depth in range(len(_IMAGES) + 1):
        # The location already ends with the first `depth` parts of ILSVRC/Data/CLS-LOC.
        if (top := _above(storage, _IMAGES[:depth])) is None:
            continue
        images = top.child("/".join(_IMAGES))
        if set(SPLITS) & (folders_in(images) or set()):
            known = depth < len(_IMAGES) or top.size_bytes(SOLUTION_BASENAME) is not None
            return (images, top) if known else None
    return None


def _above(storage: Storage, parts: Sequence[str]) -> Storage | None:
    """The storage that has this one at the path `parts`, None if this one's path does not end so."""
    for part in reversed(parts):
        if storage.name != part:
            return None
        storage = storage.parent
    return storage


@dataclass(frozen=True)
class KaggleSource(SourceDefaults):
    """The unzipped download of `kaggle competitions download imagenet-object-localization-challenge`.

    `images` holds `train/` and `val/`, and `tables` the CSV files.
    """

    images: Storage
    tables: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "kaggle"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage) -> "KaggleSource":
        """List the folders and read the labels of `val`.

        Raises:
            UserError: it is not Kaggle's layout, it has fewer than two classes, or labels are missing or do not match.
        """
        if (found := find_kaggle(storage)) is None:
            path = "/".join(_IMAGES)
            raise UserError(f"{storage.location} is not Kaggle's layout: it has no {path}/train or {path}/val")
        images, tables = found
        inside = folders_in(images) or set()
        splits = tuple(split for split in SPLITS if split in inside)
        train_folder = images.child("train")
        train = folders_in(train_folder) or set()
        labels = _read_solution(tables) if "val" in splits else {}
        if strange := sorted(name for name in train if not WNID.match(name)):
            raise UserError(f"{train_folder.location} has folders whose names are not wnids: {some(strange)}")
        val = set(labels.values())
        if train and (strange := sorted(val - train)):
            raise UserError(
                f"{tables.location}/{SOLUTION_BASENAME} has classes that {train_folder.location} lacks: "
                f"{some(strange)}; extract all of train/"
            )
        classes = number_classes(train | val)
        if len(train | val) < 2:
            raise UserError(f"{images.location} has fewer than two classes: a classifier needs two at least")
        return cls(images, tables, classes, name_classes(classes, read_class_names(tables)), splits)

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.images)

    def samples(self, split: SplitName) -> list[Sample]:
        """Every image file of the split, sorted by key.

        Raises:
            UserError: there is none, a folder cannot be listed, or an image has no label.
        """
        if split == "train":
            return class_folder_images(self.images, split, self.classes)
        solution, folder = f"{self.tables.location}/{SOLUTION_BASENAME}", self.images.child(split)
        labels = _read_solution(self.tables)
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        found = []
        for name, size_bytes in image_files(folder):
            wnid = labels.get(Path(name).stem)
            if wnid is None:
                raise UserError(
                    f"{folder.location}/{name} has no line in {solution}, so its label is unknown: remove it"
                )
            found.append(Sample(f"{wnid}/{name}", numbers[wnid], size_bytes, where=f"{split}/{name}"))
        if not found:
            inside = sorted(folders_in(folder) or ())
            other = f", but folders ({some(inside)}): give {self.images.location} as `--source-format tree`"
            raise UserError(
                f"{folder.location} has no images directly in it, as Kaggle's has" + (other if inside else "")
            )
        return sorted_by_key(found)

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the folder of images.

        Raises:
            OSError: it cannot be read.
        """
        return self.images.read(where)


def _read_solution(tables: Storage) -> dict[str, str]:
    """Image name to wnid: the first word of each prediction string, `n01978287 85 1 499 272`.

    Raises:
        UserError: the file is missing or broken, or a line is malformed.
    """
    path = f"{tables.location}/{SOLUTION_BASENAME}"
    try:
        text = tables.read(SOLUTION_BASENAME).decode("utf-8")
        rows = list(csv.reader(io.StringIO(text, newline="")))
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing, and val/ has no labels without it: copy it from the download, or pass `--split train`"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not rows or [cell.strip() for cell in rows[0]] != ["ImageId", "PredictionString"]:
        raise UserError(f"{path} does not begin with ImageId,PredictionString: copy it from the download again")
    labels = {}
    for number, row in enumerate(rows[1:], 2):
        wnid = row[1].split()[0] if len(row) == 2 and row[1].split() else ""
        if row and not WNID.match(wnid):
            raise UserError(f"{path}, line {number}: expected ImageId,PredictionString, and found no wnid")
        if row:
            labels[row[0]] = wnid
    return labels
