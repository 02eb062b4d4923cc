"""Kaggle's layout of ImageNet: `ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG`, a flat `ILSVRC/Data/CLS-LOC/val/*.JPEG`, and
the labels of `val` in `LOC_val_solution.csv` beside `ILSVRC/`; on a disk or in S3.

Keys are those of the extracted tree, so the same images give the same shards.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, SourceDefaults
from imagenet_mds_convert.sources.classes import WNID, imagenet_names, name_classes, number_classes
from imagenet_mds_convert.sources.folders import (
    ClassFolders,
    FlatFolder,
    classes_of,
    flat_folder,
    flat_samples,
    folder_notes,
    folders_in,
    list_class_folders,
    some,
)
from imagenet_mds_convert.sources.parallel import reads_at_once
from imagenet_mds_convert.sources.tables import SOLUTION_BASENAME, read_solution, read_synset_names

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


def find_kaggle_splits(storage: Storage) -> dict[SplitName, Storage]:
    """The folders of the splits, if this is Kaggle's layout."""
    if (found := find_kaggle(storage)) is None:
        return {}
    images, _ = found
    inside = folders_in(images) or set()
    return {split: images.child(split) for split in SPLITS if split in inside}


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

    `images` holds `train/` and `val/`, and `tables` the CSV files. A val sorted into class folders is taken too.
    """

    images: Storage
    tables: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "kaggle"
    drawn: bool = False
    found: Mapping[SplitName, Found] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "KaggleSource":
        """List the files of the splits, and read the labels of `val`.

        Raises:
            UserError: it is not Kaggle's layout, a split has no image, there are fewer than two classes, or labels are
                missing or do not match.
        """
        if (found := find_kaggle(storage)) is None:
            path = "/".join(_IMAGES)
            raise UserError(f"{storage.location} is not Kaggle's layout: it has no {path}/train or {path}/val")
        images, tables = found
        inside = folders_in(images) or set()
        wanted = tuple(split for split in splits if split in inside)
        unused = sorted(inside - set(SPLITS))
        warnings = [f"{images.location} has folders that are not used: {some(unused)}"] if unused else []
        folders = {split: list_class_folders(images.child(split)) for split in wanted}
        for split, listed in folders.items():
            where = listed.split.location
            if strange := sorted(name for name in listed.images if not WNID.match(name)):
                raise UserError(f"{where} has folders whose names are not wnids: {some(strange)}")
            if split == "train" and not listed.images:
                raise UserError(f"{where} has no images in its folders")
        labels: Mapping[str, str] = {}
        flat = FlatFolder([], ())
        if "val" in wanted and not folders["val"].images:
            labels, flat = _labels(tables), flat_folder(folders["val"])
            del folders["val"]
        present = classes_of(flat, labels)
        names = present.union(*(listed.images for listed in folders.values()))
        if "train" in inside and "train" not in wanted and not names <= imagenet_names().keys():
            names |= folders_in(images.child("train")) or set()
        if len(names) < 2:
            raise UserError(f"{images.location} has fewer than two classes: a classifier needs two at least")
        classes = number_classes(names)
        _refuse_strange(images, tables, folders, present)
        by_split = {split: listed.number(classes) for split, listed in folders.items()}
        if labels:
            by_split["val"] = _flat_val(images.child("val"), flat, tables, labels, classes)
        warnings += folder_notes(folders.values(), classes)
        known_names, unread = read_synset_names(tables)
        names_for_people = name_classes(classes, known_names)
        return cls(images, tables, classes, names_for_people, wanted, (*warnings, *unread), found=by_split)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the listing: a shard task carries the samples that it needs."""
        return vars(self) | {"found": {}}

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.images)

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key, as `open` found it."""
        return self.found[split]

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the folder of images.

        Raises:
            OSError: it cannot be read.
        """
        return self.images.read(where)


def _labels(tables: Storage) -> Mapping[str, str]:
    try:
        return read_solution(tables)
    except FileNotFoundError:
        raise UserError(
            f"{tables.location}/{SOLUTION_BASENAME} is missing, and val/ has no labels without it: copy it from the "
            f"download, or pass `--split train`"
        ) from None


def _refuse_strange(
    images: Storage, tables: Storage, folders: Mapping[SplitName, ClassFolders], labelled: set[str]
) -> None:
    """Refuse a val with classes that train lacks, which shows that train is not whole; `labelled` are those of a val
    without class folders."""
    if "train" not in folders:
        return
    val = labelled or (set(folders["val"].images) if "val" in folders else set())
    if strange := sorted(val - set(folders["train"].images)):
        where = f"{tables.location}/{SOLUTION_BASENAME}" if labelled else folders["val"].split.location
        raise UserError(
            f"{where} has classes that {images.child('train').location} lacks: {some(strange)}; extract all of train/"
        )


def _flat_val(
    folder: Storage, listed: FlatFolder, tables: Storage, labels: Mapping[str, str], classes: Sequence[str]
) -> Found:
    if not listed.images:
        raise UserError(f"{folder.location} has no images")
    return flat_samples(folder, listed, labels, f"{tables.location}/{SOLUTION_BASENAME}", classes)
