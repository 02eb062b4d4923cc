"""The extracted ILSVRC2012 tree: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.

A class folder's name need not be a wnid; class numbers are those of ImageNet's 1,000 wnids where all names are among
them, else the places among the sorted names of both splits together, so that `train` and `val` always agree.
`LOC_synset_mapping.txt` beside the splits, as Kaggle ships it, gives the names for people.
"""

from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.manifest import SPLITS
from imagenet_mds_convert.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.source import Sample
from imagenet_mds_convert.sources.folders import (
    SYNSET_MAPPING_BASENAME,
    class_folder_images,
    folders_in,
    read_names,
    refuse_unwritable_name,
    some,
)


@dataclass(frozen=True)
class TreeSource:
    """A tree of class folders on a disk. Keys are paths under the split: `n01440764/n01440764_10026.JPEG`."""

    root: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]
    kind: str = "tree"

    @classmethod
    def open(cls, root: Path) -> "TreeSource":
        """Look at the folders, not yet at the files.

        Raises:
            UserError: no `train/` or `val/`, no class folders, a single class, a class in `val/` that `train/` lacks.
        """
        splits = tuple(split for split in SPLITS if (root / split).is_dir())
        if not splits:
            raise UserError(_why_no_splits(root))
        folders = {split: folders_in(root / split) for split in splits}
        for split in splits:
            if not folders[split]:
                raise UserError(f"{root / split} has no class folders: images belong into {root / split}/<wnid>/")
            for name in folders[split]:
                refuse_unwritable_name(root / split, name)
        if len(splits) == 2 and (strange := sorted(folders["val"] - folders["train"])):
            raise UserError(
                f"{root / 'val'} has classes that {root / 'train'} lacks: {some(strange)}; "
                f"a class number would mean two things, so make the folders agree"
            )
        found = sorted(set().union(*folders.values()))
        if len(found) == 1:
            raise UserError(f"{root} has one class, {found[0]}: a classifier needs two at least")
        notes = []
        if strange := [name for name in found if not WNID.match(name)]:
            notes.append(f"class folders whose names are not wnids are taken as they are: {some(strange)}")
        classes = number_classes(found)
        known = read_names(root / SYNSET_MAPPING_BASENAME)
        return cls(root, classes, name_classes(classes, known), splits, tuple(notes))

    def samples(self, split: str) -> list[Sample]:
        """Every image file of the split, sorted by key.

        Raises:
            UserError: there is none, a folder cannot be listed, or a name cannot stand in `keys.txt`.
        """
        return class_folder_images(self.root, split, self.classes)

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the root."""
        return (self.root / where).read_bytes()


def _why_no_splits(root: Path) -> str:
    folders = sorted(folders_in(root))
    if not folders:
        return f"{root} has no folders: give the folder that holds train/ and val/"
    inner = [name for name in folders if any((root / name / split).is_dir() for split in SPLITS)]
    if inner:
        return f"{root} holds neither train/ nor val/, but {root / inner[0]} does: give that folder"
    if root.name in SPLITS:
        return f"{root} is one split: give the folder above it, {root.parent}, and `--split {root.name}`"
    return f"{root} holds neither train/ nor val/ but {some(folders)}: put the class folders into train/ and val/"
