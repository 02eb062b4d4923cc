"""Folders of images, on a disk or in S3: the code shared by sources that read plain files.

A folder is listed once, with sizes, and no file is looked up on its own. In S3 that takes one request per thousand
files, and several folders are listed at once.
"""

import os
from collections.abc import Iterable, Sequence
from functools import partial

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Listing, Storage
from imagenet_mds_convert.sources.base import Sample
from imagenet_mds_convert.sources.parallel import reads_at_once, run_ahead

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
SYNSET_MAPPING_BASENAME = "LOC_synset_mapping.txt"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, unless it is hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def sorted_by_key(samples: Iterable[Sample]) -> list[Sample]:
    """Samples sorted by the bytes of their keys, independent of locale and file system."""
    return sorted(samples, key=lambda sample: sample.key.encode("utf-8", "surrogateescape"))


def find_listing(folder: Storage) -> Listing | None:
    """The direct content of a folder; None if it does not exist.

    Raises:
        UserError: it cannot be listed.
    """
    try:
        return folder.listing()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"{folder.location} cannot be listed: {error.strerror or error}") from None


def image_files(folder: Storage) -> list[tuple[str, int]]:
    """Name and size in bytes of every image file directly in a folder, in no particular order; empty if there is no
    such folder.

    Raises:
        UserError: the folder cannot be listed, or a name cannot be written to `keys.txt`.
    """
    found = find_listing(folder)
    files = [(entry.name, entry.size_bytes) for entry in found.files if is_image_name(entry.name)] if found else []
    for name, _ in files:
        refuse_unwritable_name(folder, name)
    return files


def class_folder_images(root: Storage, split: str, classes: Sequence[str]) -> list[Sample]:
    """Every image of `<root>/<split>/<class>/`, sorted by key; `where` is the path under the root.

    Raises:
        UserError: there is none, a folder cannot be listed, or a name cannot be written to `keys.txt`.
    """
    folder = root.child(split)

    def list_class(label: int, name: str) -> list[Sample]:
        keys = ((f"{name}/{basename}", size_bytes) for basename, size_bytes in image_files(folder.child(name)))
        return [Sample(key, label, size_bytes, where=f"{split}/{key}") for key, size_bytes in keys]

    # A source may have few of ImageNet's 1,000 classes; in S3, each missing one would cost a request.
    there = folders_in(folder) or () if root.remote else classes
    calls = (partial(list_class, label, name) for label, name in enumerate(classes) if name in there)
    found: list[Sample] = []
    for listed in run_ahead(calls, reads_at_once(root)):
        found += listed()
    if not found:
        raise UserError(f"{folder.location} has no images ({', '.join(IMAGE_SUFFIXES)}) in its folders")
    return sorted_by_key(found)


def folders_in(folder: Storage) -> set[str] | None:
    """The names of the folders in a folder, except hidden ones; None if it does not exist.

    Raises:
        UserError: it cannot be listed.
    """
    found = find_listing(folder)
    return {name for name in found.folders if not name.startswith(".")} if found else None


def refuse_unwritable_name(folder: Storage, name: str) -> None:
    """Refuse a name that cannot be a line of UTF-8 in `keys.txt`.

    Raises:
        UserError: it is not UTF-8, or has a line break in it.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{folder.location} has a name that is not UTF-8, {os.fsencode(name)!r}: rename it") from None
    if "\n" in name or "\r" in name:
        raise UserError(f"{folder.location} has a name with a line break in it, {name!r}: rename it")


def read_class_names(folder: Storage) -> dict[str, str]:
    """Kaggle's mapping of a wnid to its first lemma: `n01440764 tench, Tinca tinca` gives tench. Empty if there is no
    such file."""
    if folder.size_bytes(SYNSET_MAPPING_BASENAME) is None:
        return {}
    lines = folder.read(SYNSET_MAPPING_BASENAME).decode("utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {pair[0]: pair[-1].split(",")[0].strip() for pair in pairs}


def some(names: Sequence[str], most: int = 3) -> str:
    """Format names for a message: at most `most` of them, then how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
