"""The extracted ILSVRC2012 tree: `train/<wnid>/*.JPEG` and `val/<wnid>/*.JPEG`.

A class folder's name need not be a wnid; class numbers are those of ImageNet's 1,000 wnids where all names are among
them, else the places among the sorted names of both splits together, so that `train` and `val` always agree.
`LOC_synset_mapping.txt` beside the splits, as Kaggle ships it, gives the names for people.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.manifest import SPLITS
from imagenet_mds_convert.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.source import Sample

IMAGE_SUFFIXES = frozenset({".jpeg", ".jpg", ".png"})
SYNSET_MAPPING_BASENAME = "LOC_synset_mapping.txt"


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
        folders = {split: _folders(root / split) for split in splits}
        for split in splits:
            if not folders[split]:
                raise UserError(f"{root / split} has no class folders: images belong into {root / split}/<wnid>/")
            for name in folders[split]:
                _refuse_unwritable_name(root / split, name)
        if len(splits) == 2 and (strange := sorted(folders["val"] - folders["train"])):
            raise UserError(
                f"{root / 'val'} has classes that {root / 'train'} lacks: {_some(strange)}; "
                f"a class number would mean two things, so make the folders agree"
            )
        found = sorted(set().union(*folders.values()))
        if len(found) == 1:
            raise UserError(f"{root} has one class, {found[0]}: a classifier needs two at least")
        notes = []
        if strange := [name for name in found if not WNID.match(name)]:
            notes.append(f"class folders whose names are not wnids are taken as they are: {_some(strange)}")
        classes = number_classes(found)
        known = _read_names(root / SYNSET_MAPPING_BASENAME)
        return cls(root, classes, name_classes(classes, known), splits, tuple(notes))

    def samples(self, split: str) -> list[Sample]:
        """Every image file of the split, sorted by key.

        Raises:
            UserError: there is none, a folder cannot be listed, or a name cannot stand in `keys.txt`.
        """
        found = []
        for label, name in enumerate(self.classes):
            folder = self.root / split / name
            if not folder.is_dir():
                continue
            with _listing(folder), os.scandir(folder) as entries:
                for entry in entries:
                    suffix = Path(entry.name).suffix.lower()
                    if suffix not in IMAGE_SUFFIXES or entry.name.startswith("."):
                        continue
                    if (size_bytes := _file_size_bytes(entry)) is not None:
                        _refuse_unwritable_name(folder, entry.name)
                        key = f"{name}/{entry.name}"
                        found.append(Sample(key, label, size_bytes, where=f"{split}/{key}"))
        if not found:
            raise UserError(
                f"{self.root / split} has no images: looked for {_some(sorted(IMAGE_SUFFIXES))} in its folders"
            )
        # Sorted as bytes are, whatever the locale and the file system say.
        return sorted(found, key=lambda sample: sample.key.encode("utf-8", "surrogateescape"))

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the root."""
        return (self.root / where).read_bytes()


def _folders(folder: Path) -> set[str]:
    with _listing(folder), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"{folder} cannot be listed: {error.strerror}") from None


def _file_size_bytes(entry: os.DirEntry[str]) -> int | None:
    """None for what is no file; 0 for a link to nothing, which cannot be read and is left out with the reason."""
    try:
        status = entry.stat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _refuse_unwritable_name(folder: Path, name: str) -> None:
    """Keys are lines of UTF-8 in `keys.txt` and strings in the manifest."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{folder} has a name that is not UTF-8, {os.fsencode(name)!r}: rename it") from None
    if "\n" in name or "\r" in name:
        raise UserError(f"{folder} has a name with a line break in it, {name!r}: rename it")


def _why_no_splits(root: Path) -> str:
    folders = sorted(_folders(root))
    if not folders:
        return f"{root} has no folders: give the folder that holds train/ and val/"
    inner = [name for name in folders if any((root / name / split).is_dir() for split in SPLITS)]
    if inner:
        return f"{root} holds neither train/ nor val/, but {root / inner[0]} does: give that folder"
    if root.name in SPLITS:
        return f"{root} is one split: give the folder above it, {root.parent}, and `--split {root.name}`"
    return f"{root} holds neither train/ nor val/ but {_some(folders)}: put the class folders into train/ and val/"


def _read_names(path: Path) -> dict[str, str]:
    """wnid to the first of its lemmas: `n01440764 tench, Tinca tinca` gives tench."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {pair[0]: pair[-1].split(",")[0].strip() for pair in pairs}


def _some(names: list[str], most: int = 3) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
