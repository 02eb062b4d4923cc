"""What lies beside the files that a source takes, so that nothing that may hold images is passed over in silence.

In the folder of a split every other file is counted as not taken, as in a tree. In the root of the source only images
and archives are, because a download has texts and scripts there too; its other folders, and files of a test split, are
named in a note.
"""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.sources.folders import count_others, find_listing, folders_in, some
from imagenet_mds_convert.sources.names import (
    SPLIT_OF,
    NotTakenCount,
    is_image_name,
    is_system_file,
    is_system_folder,
)

_ARCHIVE = re.compile(r".\.(tar|tgz|tbz2?|txz|tzst|zip|7z|rar|parquet)(\.|\Z)", re.IGNORECASE)
_SPLIT_WORD = re.compile(rf"(?:\A|[^a-z])({'|'.join(SPLIT_OF)}|test)(?=[^a-z]|\Z)", re.IGNORECASE)
_CLASS_TAR = re.compile(r"n\d{8}\.", re.IGNORECASE)
_OFFICIAL = "ILSVRC2012_"


def count_in_split(folder: Storage, taken: Collection[str], count: NotTakenCount) -> None:
    """Count the files in the folder of a split, at any depth, that are not taken.

    Args:
        folder: the folder, which may be missing.
        taken: the names of the files directly in it that are taken.
        count: where they are counted.

    Raises:
        UserError: a folder cannot be listed.
    """
    listing = find_listing(folder)
    for entry in listing.files if listing else ():
        if entry.name not in taken:
            count.count(f"{folder.name}/", entry.name, entry.name)
    if listing:
        count_others(listing, f"{folder.name}/", "", count)
    for name in folders_in(folder) or ():
        inside = folder.child(name)
        try:
            for entry in inside.walk():
                *above, basename = entry.name.split("/")
                if not any(map(is_system_folder, above)):
                    count.count(f"{folder.name}/*/", basename, f"{name}/{entry.name}")
        except OSError as error:
            raise UserError(f"{inside.location} cannot be listed: {error.strerror or error}") from None


def count_in_root(
    folder: Storage,
    place: str,
    taken: Collection[str],
    counts: Mapping[SplitName, NotTakenCount],
    asked: Sequence[SplitName],
) -> list[str]:
    """Count the images and archives in the root of a source, or in a folder of it that several splits share, that are
    not taken. Each counts for the split that its name has, else for the first one.

    Args:
        folder: the root or folder.
        place: what it is called in the counts.
        taken: the names of the files in it that are taken.
        counts: where they are counted, by the splits that are opened.
        asked: the splits that were asked for. Files of another split are passed over.

    Returns:
        A note that names the files of a test split, if there are any.

    Raises:
        UserError: the folder cannot be listed.
    """
    listing = find_listing(folder)
    unused = []
    for entry in listing.files if listing else ():
        name = entry.name
        is_archive = _ARCHIVE.search(name) is not None and not name.startswith(_OFFICIAL)
        if name in taken or is_system_file(name) or not (is_archive or is_image_name(name)):
            continue
        word = _split_word(name) if is_archive else None
        if word == "test":
            unused.append(name)
            continue
        split = SPLIT_OF[word] if word else None
        if split is None or split in asked:
            owner = split if split is not None and split in counts else next(iter(counts))
            counts[owner].count(place, name, name)
    return [f"{folder.location} has files that are not used: {some(sorted(unused))}"] if unused else []


def note_unused_folders(root: Storage, used: Collection[str] = ()) -> list[str]:
    """A note that names the folders in the root of a source that are neither used nor a split's, if there are any.

    Raises:
        UserError: the folder cannot be listed.
    """
    unused = sorted(name for name in folders_in(root) or () if name not in used and name.lower() not in SPLIT_OF)
    return [f"{root.location} has folders that are not used: {some(unused)}"] if unused else []


def note_packed_splits(root: Storage, missing: Iterable[SplitName]) -> list[str]:
    """Notes that name the archives of splits that are missing from a source, such as `val.tar` beside `train/`.

    Raises:
        UserError: the folder cannot be listed.
    """
    notes = []
    listing = find_listing(root)
    names = sorted(entry.name for entry in listing.files if _ARCHIVE.search(entry.name)) if listing else []
    for split in missing:
        packed = [name for name in names if SPLIT_OF.get(_split_word(name) or "") == split]
        if packed:
            notes.append(
                f"{root.location} has no {split} but {some(packed)}, which is not taken: unpack it into {split}/"
            )
    return notes


def _split_word(name: str) -> str | None:
    """The word in a file's name that says of which split it is, in lower case; a class tar is of train."""
    if match := _SPLIT_WORD.search(name):
        return match[1].lower()
    return "train" if _CLASS_TAR.match(name) else None
