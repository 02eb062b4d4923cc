"""The names of ImageNet's parquet files on Hugging Face: `data/train-00000-of-00294.parquet` and
`data/validation-00000-of-00014.parquet`; or as the hub converts a dataset, `default/train/0000.parquet`. `parquet.py`
reads them.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SplitName
from imagenet_mds_convert.sources.beside import count_in_root, count_in_split, note_unused_folders
from imagenet_mds_convert.sources.folders import find_listing, folders_in
from imagenet_mds_convert.sources.names import SPLIT_OF, NotTakenCount

_SPLIT = rf"(?P<set>(?:.*/)?(?P<split>{'|'.join(SPLIT_OF)}))"
_NAMED = re.compile(rf"{_SPLIT}-(\d{{5}})-of-(?P<total>\d{{5}})(-[0-9a-f]+)?\.parquet")
_NUMBERED = re.compile(rf"{_SPLIT}/(\d{{4}})\.parquet")
DATA_FOLDER = "data"
_CONVERTED = "default"
"""The folder of a dataset that the hub converted, with a folder for each split."""


class _File(NamedTuple):
    """What a file's path says: its split, the set of files that it is one of, its number in it, and how many the set
    has, None if that is not said."""

    split: SplitName
    of: str
    number: int
    total: int | None


def _parse(name: str) -> _File | None:
    """What a path says if it is that of a file of train or val, else None."""
    if match := _NAMED.fullmatch(name):
        return _File(SPLIT_OF[match["split"]], f"{match['set']}-*-of-{match['total']}", int(match[3]), int(match[4]))
    if match := _NUMBERED.fullmatch(name):
        return _File(SPLIT_OF[match["split"]], f"{match['set']}/*", int(match[3]), None)
    return None


def parquet_files(storage: Storage) -> tuple[str, ...]:
    """The files of train and val, sorted: in `data/` or in the folder itself, or as the hub converts a dataset, in
    `default/train/`, or `train/` of the folder `default`. Empty if this is another layout.

    Raises:
        UserError: a folder cannot be listed.
    """
    names = _files_in(storage, "") + _files_in(storage, DATA_FOLDER)
    inside = folders_in(storage) or set()
    folders = sorted(inside & SPLIT_OF.keys())
    if _CONVERTED in inside:
        folders += sorted(
            f"{_CONVERTED}/{name}" for name in folders_in(storage.child(_CONVERTED)) or () if name in SPLIT_OF
        )
    for folder in folders:
        # Only its first file is looked for, because a folder of this name is a tree's as a rule, and long to list.
        at = storage.child(folder)
        if at.size_bytes("0000.parquet") is not None and not folders_in(at):
            names += _files_in(storage, folder)
    return select_files(names)


def _files_in(storage: Storage, folder: str) -> list[str]:
    """The paths under the root of the files directly in a folder; none if there is no such folder."""
    listing = find_listing(storage.child(folder) if folder else storage)
    prefix = f"{folder}/" if folder else ""
    return [f"{prefix}{entry.name}" for entry in listing.files] if listing else []


def select_files(names: Iterable[str]) -> tuple[str, ...]:
    """The paths of files of train and val, sorted."""
    return tuple(sorted(name for name in names if _parse(name)))


def find_parquet(storage: Storage) -> dict[SplitName, str | Storage]:
    """The folder of each split that has its files in one of its own, else the first of them."""
    files = parquet_files(storage)
    first = {split: next((name for name in files if is_of(name, split)), None) for split in SPLITS}
    return {
        split: storage.child(name.rpartition("/")[0]) if _NUMBERED.fullmatch(name) else name
        for split, name in first.items()
        if name
    }


def is_of(name: str, split: SplitName) -> bool:
    """Whether a file is one of the split's."""
    file = _parse(name)
    return file is not None and file.split == split


def note_missing_files(where: str, files: Iterable[str]) -> list[str]:
    """Notes about files that are missing, by the numbers in the names of the others.

    Args:
        where: the location of the files.
        files: the paths of the files of some splits.

    Raises:
        UserError: the files of a split are from two sets, or one is there twice.
    """
    names: dict[tuple[SplitName, int], str] = {}
    sets: dict[SplitName, _File] = {}
    for name in files:
        file = _parse(name)
        assert file is not None  # `select_files` matched it
        known = sets.setdefault(file.split, file)
        if known.of != file.of:
            raise UserError(
                f"{where} has files of two sets for {file.split}, {known.of}.parquet and {file.of}.parquet: move those "
                f"of one elsewhere"
            )
        if other := names.get((file.split, file.number)):
            raise UserError(f"{where} has one file of {file.split} twice, {other} and {name}: keep one")
        names[file.split, file.number] = name
    notes = []
    for split, file in sets.items():
        numbers = {number for one, number in names if one == split}
        total = max(numbers) + 1 if file.total is None else file.total
        if missing := total - len(numbers.intersection(range(total))):
            notes.append(f"{total - missing} of the {total} parquet files of {split} are here")
    return notes


def count_beside(
    storage: Storage,
    files: Sequence[str],
    counts: Mapping[SplitName, NotTakenCount],
    asked: Sequence[SplitName],
) -> list[str]:
    """Count what lies beside the files of the splits and is not taken, and return notes about the rest."""
    if not counts:
        return []
    own = {name.rpartition("/")[0] for name in files if _NUMBERED.fullmatch(name)}
    shared = {"", *(name.rpartition("/")[0] for name in files)} - own
    shared |= {path.rpartition("/")[0] for path in own}
    notes = []
    for path in sorted(shared | own):
        folder = storage.child(path) if path else storage
        taken = {name.rpartition("/")[2] for name in files if name.rpartition("/")[0] == path}
        if path in shared:
            notes += note_unused_folders(folder, shared)
            notes += count_in_root(folder, f"{path or '.'}/", taken, counts, asked)
        elif (split := SPLIT_OF[folder.name]) in counts:
            count_in_split(folder, taken, counts[split])
    return notes
