"""The extracted tree: class folders in `train/` and `val/`, on a disk or in S3.

A class folder's name need not be a wnid. If all names are among ImageNet's 1,000 wnids, the class numbers are those of
ImageNet; otherwise they are positions among the sorted names of both splits together, so that `train` and `val` agree.
Files that come with ImageNet are used where they lie: `LOC_synset_mapping.txt` or `words.txt` for the names of classes,
and for a val without class folders `val_annotations.txt` (Tiny-ImageNet), `LOC_val_solution.csv` or the devkit.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, SourceDefaults
from imagenet_mds_convert.sources.classes import WNID, imagenet_names, name_classes, number_classes
from imagenet_mds_convert.sources.folders import (
    FLAT_FOLDERS,
    ClassFolders,
    FlatFolder,
    classes_of,
    find_listing,
    flat_folder,
    flat_samples,
    folder_notes,
    folders_in,
    list_class_folders,
    list_flat,
    names_in,
    normal_form,
    number_notes,
    some,
)
from imagenet_mds_convert.sources.names import is_image_name
from imagenet_mds_convert.sources.others import refusal
from imagenet_mds_convert.sources.parallel import reads_at_once
from imagenet_mds_convert.sources.tables import find_val_labels, read_synset_names

_FOLDER_NAMES: dict[SplitName, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
}
"""The names of a split's folder, in lower case."""
_SPLIT_FOLDERS = frozenset(name for names in _FOLDER_NAMES.values() for name in names)
_MOST_LOOKED_INTO = 20
"""Folders in S3 searched for splits, for an error message; each takes two requests."""


def find_tree(storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> dict[SplitName, Storage]:
    """The folders of these splits, by split.

    Raises:
        UserError: a split has two folders.
    """
    inside = sorted(folders_in(storage) or ())
    found: dict[SplitName, Storage] = {}
    for split in splits:
        folders = [name for name in inside if name.lower() in _FOLDER_NAMES[split]]
        if len(folders) > 1:
            raise UserError(
                f"{storage.location} has {split} twice, in {' and in '.join(f'{name}/' for name in folders)}: "
                f"remove or rename one of them"
            )
        if folders:
            found[split] = storage.child(folders[0])
    return found


def needed_for_classes(splits: tuple[SplitName, ...]) -> tuple[SplitName, ...]:
    """The splits whose class folders count for the class numbers of these splits: train's alone for train alone, since
    val may have no other ones."""
    return splits if splits == ("train",) else SPLITS


def find_filled_tree(storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> dict[SplitName, Storage]:
    """The folders of these splits that hold anything; an empty one beside an archive is not another copy of the split.

    Raises:
        UserError: a split has two folders, or a folder cannot be listed.
    """
    return {split: folder for split, folder in find_tree(storage, splits).items() if names_in(folder)}


@dataclass(frozen=True)
class TreeSource(SourceDefaults):
    """A tree of class folders. Keys are paths under the split: `n01440764/n01440764_10026.JPEG`."""

    storage: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ()
    kind: SourceKind = "tree"
    drawn: bool = False
    found: Mapping[SplitName, Found] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "TreeSource":
        """List the files of the splits.

        Args:
            storage: the folder that holds the splits.
            splits: the splits that are wanted; nothing is read of another one but what the class numbers need.

        Raises:
            UserError: there is no folder of a split, there are fewer than two classes, `val/` has a class that `train/`
                lacks, a folder cannot be listed, or a name cannot be written to `keys.txt`.
        """
        folders = find_tree(storage, needed_for_classes(splits))
        if not folders:
            raise refusal(_why_no_splits(storage), storage)
        wanted = tuple(split for split in splits if split in folders)
        unused = sorted(name for name in folders_in(storage) or () if name.lower() not in _SPLIT_FOLDERS)
        warnings = [f"{storage.location} has folders that are not used: {some(unused)}"] if unused else []
        listed = {split: list_class_folders(folders[split]) for split in wanted}
        labelled: dict[SplitName, _Flat] = {}
        if "val" in wanted and not any(WNID.match(name) for name in listed["val"].images):
            labelled = {"val": flat} if (flat := _Flat.find(listed["val"], storage)) else {}
        for split, at in listed.items():
            if split not in labelled and not at.images:
                raise refusal(_why_no_images(split, at, folders), folders[split])
        trees = {split: at for split, at in listed.items() if split not in labelled}
        present = {split: set(at.images) for split, at in trees.items()}
        present |= {split: one.classes for split, one in labelled.items()}
        _refuse_strange(folders, present)
        names = set(present.get("train", ()))
        if "train" in folders and "train" not in wanted:
            names |= _classes_of_train(folders["train"], present["val"])
        known = {normal_form(name) for name in names}
        names |= {name for name in present.get("val", ()) if normal_form(name) not in known}
        if len(names) == 1:
            raise UserError(f"{storage.location} has one class, {min(names)}: a classifier needs two at least")
        classes = number_classes(names)
        strange = [name for name in sorted(names) if not WNID.match(name)]
        others = sorted(names - imagenet_names().keys())
        if others and len(others) < len(names):
            warnings.append(
                f"class numbers are positions among the sorted folders and not ImageNet's, because of folders that "
                f"ImageNet does not have: {some(others)}"
            )
        elif strange:
            warnings.append(f"class folders whose names are not wnids are taken as they are: {some(strange)}")
        warnings += folder_notes(trees.values(), classes) + number_notes(classes)
        found = {split: at.number(classes) for split, at in trees.items()}
        found |= {split: one.samples(classes) for split, one in labelled.items()}
        known_names, unread = read_synset_names(storage)
        names_for_people = name_classes(classes, known_names)
        return cls(storage, classes, names_for_people, wanted, (*warnings, *unread), found=found)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the listing: a shard task carries the samples that it needs."""
        return vars(self) | {"found": {}}

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.storage)

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key, as `open` found it."""
        return self.found[split]

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the root.

        Raises:
            OSError: it cannot be read.
        """
        return self.storage.read(where)


@dataclass(frozen=True)
class _Flat:
    """A val without class folders, and its labels."""

    folder: Storage
    labels: Mapping[str, str]
    table: str
    listed: FlatFolder

    @classmethod
    def find(cls, listed: ClassFolders, root: Storage) -> "_Flat | None":
        """The split as one without class folders, if it has images in `FLAT_FOLDERS` and a table of labels."""
        flat = flat_folder(listed)
        if any(path.rpartition("/")[0] in FLAT_FOLDERS for path, _ in flat.images) and (
            labels := find_val_labels(listed.split, root)
        ):
            return cls(listed.split, *labels, flat)
        return None

    @property
    def classes(self) -> set[str]:
        """The classes of the images that are here; the table may have more."""
        return classes_of(self.listed, self.labels)

    def samples(self, classes: tuple[str, ...]) -> Found:
        """The images, labelled."""
        return flat_samples(self.folder, self.listed, self.labels, self.table, classes)


def _refuse_strange(folders: Mapping[SplitName, Storage], present: Mapping[SplitName, set[str]]) -> None:
    if len(present) < 2:
        return
    known = {normal_form(name) for name in present["train"]}
    if strange := sorted(name for name in present["val"] if normal_form(name) not in known):
        raise UserError(
            f"{folders['val'].location} has classes that {folders['train'].location} lacks: {some(strange)}; "
            f"a class number would be ambiguous, so make the folders agree"
        )


def _classes_of_train(train: Storage, names: set[str]) -> set[str]:
    """The classes of train, when val is converted alone: its class numbers count them too. ImageNet's need no look at
    the files, because their numbers are the same in any case."""
    folders = folders_in(train) or set()
    wnids = imagenet_names().keys()
    return folders if names | folders <= wnids else set(list_class_folders(train).images)


def _why_no_images(split: SplitName, at: ClassFolders, folders: Mapping[SplitName, Storage]) -> str:
    where = at.split.location
    other = next((name for name in folders if name != split), None)
    instead = f"; `--split {other}` converts {other} alone" if other else ""
    if at.empty or at.skipped:
        return f"{where} has no images in its folders ({some(at.empty or at.skipped)}){instead}"
    direct = list_flat(at.split, "").images
    if direct and split == "val":
        return (
            f"{where} has its {len(direct):,} images directly in it, and no labels for them: sort them into "
            f"{where}/<wnid>/, or put ILSVRC2012_devkit_t12.tar.gz or LOC_val_solution.csv beside it, or "
            f"val_annotations.txt into it{instead}"
        )
    return f"{where} has no class folders: put the images into {where}/<wnid>/{instead}"


def _files_instead(storage: Storage) -> str:
    """What files a folder without folders holds, and what such files would have to be called to be a source."""
    names = [name for name in names_in(storage) if not name.startswith("ILSVRC2012_")]
    for suffix, wanted in (
        (".tar", "n01440764.tar, imagenet1k-train-0000.tar or ILSVRC2012_img_train.tar"),
        (".parquet", "train-00000-of-00294.parquet"),
    ):
        if name := next((name for name in names if name.lower().endswith(suffix)), None):
            return f" but {name}, which is not named as {wanted}"
    if images := [name for name in names if is_image_name(name)]:
        return f" but {len(images):,} images directly in it, which need class folders"
    return ""


def _why_no_splits(storage: Storage) -> str:
    here, folders = storage.location, sorted(folders_in(storage) or ())
    if not folders:
        return f"{here} has no folders{_files_instead(storage)}: give the folder that holds train/ and val/"
    for inner in map(storage.child, folders[: _MOST_LOOKED_INTO if storage.remote else None]):
        if any(find_listing(inner.child(split)) is not None for split in SPLITS):
            return f"{here} holds neither train/ nor val/, but {inner.location} does: give that folder"
    if storage.name in SPLITS:
        above = storage.parent.location
        return (
            f"{here} is one split: give the folder above it, {above}; `convert --split {storage.name}` takes it alone"
        )
    return f"{here} holds neither train/ nor val/ but {some(folders)}: put the class folders into train/ and val/"
