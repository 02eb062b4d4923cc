"""The extracted ILSVRC2012 tree: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`, on a disk or in S3.

A class folder's name need not be a wnid. If all names are among ImageNet's 1,000 wnids, the class numbers are those of
ImageNet; otherwise they are positions among the sorted names of both splits together, so that `train` and `val` agree.
`LOC_synset_mapping.txt` beside the splits, as Kaggle ships it, gives the classes' names.
"""

from dataclasses import dataclass

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Sample, SourceDefaults
from imagenet_mds_convert.sources.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.sources.folders import (
    class_folder_images,
    find_listing,
    folders_in,
    read_class_names,
    refuse_unwritable_name,
    some,
)
from imagenet_mds_convert.sources.parallel import reads_at_once

_MOST_LOOKED_INTO = 20
"""Folders in S3 searched for splits, for an error message; each takes two requests."""


@dataclass(frozen=True)
class TreeSource(SourceDefaults):
    """A tree of class folders. Keys are paths under the split: `n01440764/n01440764_10026.JPEG`."""

    storage: Storage
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...]
    kind: SourceKind = "tree"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage) -> "TreeSource":
        """List the folders, not yet the files.

        Raises:
            UserError: there is no `train/` or `val/`, there are fewer than two class folders, or `val/` has a class
                that `train/` lacks.
        """
        below = {split: storage.child(split) for split in SPLITS}
        folders = {split: names for split, at in below.items() if (names := folders_in(at)) is not None}
        if not folders:
            raise UserError(_why_no_splits(storage))
        for split, names in folders.items():
            if not names:
                at = below[split].location
                raise UserError(f"{at} has no class folders: put the images into {at}/<wnid>/")
            for name in names:
                refuse_unwritable_name(below[split], name)
        if len(folders) == 2 and (strange := sorted(folders["val"] - folders["train"])):
            raise UserError(
                f"{below['val'].location} has classes that {below['train'].location} lacks: {some(strange)}; "
                f"a class number would be ambiguous, so make the folders agree"
            )
        found = sorted(set().union(*folders.values()))
        if len(found) == 1:
            raise UserError(f"{storage.location} has one class, {found[0]}: a classifier needs two at least")
        warnings = []
        if strange := [name for name in found if not WNID.match(name)]:
            warnings.append(f"class folders whose names are not wnids are taken as they are: {some(strange)}")
        classes = number_classes(found)
        return cls(storage, classes, name_classes(classes, read_class_names(storage)), tuple(folders), tuple(warnings))

    @property
    def reads_at_once(self) -> int:
        """Several where requests go over a network, else 1."""
        return reads_at_once(self.storage)

    def samples(self, split: SplitName) -> list[Sample]:
        """Every image file of the split, sorted by key.

        Raises:
            UserError: there is none, a folder cannot be listed, or a name cannot be written to `keys.txt`.
        """
        return class_folder_images(self.storage, split, self.classes)

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the root.

        Raises:
            OSError: it cannot be read.
        """
        return self.storage.read(where)


def _why_no_splits(storage: Storage) -> str:
    here, folders = storage.location, sorted(folders_in(storage) or ())
    if not folders:
        return f"{here} has no folders: give the folder that holds train/ and val/"
    for inner in map(storage.child, folders[: _MOST_LOOKED_INTO if storage.remote else None]):
        if any(find_listing(inner.child(split)) is not None for split in SPLITS):
            return f"{here} holds neither train/ nor val/, but {inner.location} does: give that folder"
    if storage.name in SPLITS:
        above = storage.parent.location
        return (
            f"{here} is one split: give the folder above it, {above}; `convert --split {storage.name}` takes it alone"
        )
    return f"{here} holds neither train/ nor val/ but {some(folders)}: put the class folders into train/ and val/"
