"""Folders of images on a disk: what the sources that read plain files share."""

import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds_convert.source import Sample

IMAGE_SUFFIXES = (".jpeg", ".jpg", ".png")
SYNSET_MAPPING_BASENAME = "LOC_synset_mapping.txt"


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image: by its suffix, and not when it is hidden."""
    return name.lower().endswith(IMAGE_SUFFIXES) and not name.startswith(".")


def sorted_by_key(samples: Iterable[Sample]) -> list[Sample]:
    """Sorted as bytes are, whatever the locale and the file system say."""
    return sorted(samples, key=lambda sample: sample.key.encode("utf-8", "surrogateescape"))


def image_files(folder: Path) -> Iterator[tuple[str, int]]:
    """Name and size in bytes of every image file right in a folder, in no particular order.

    Raises:
        UserError: the folder cannot be listed, or a name cannot stand in `keys.txt`.
    """
    with listing(folder), os.scandir(folder) as entries:
        for entry in entries:
            if is_image_name(entry.name) and (size_bytes := _file_size_bytes(entry)) is not None:
                refuse_unwritable_name(folder, entry.name)
                yield entry.name, size_bytes


def class_folder_images(root: Path, split: str, classes: Sequence[str]) -> list[Sample]:
    """Every image of `<root>/<split>/<class>/`, sorted by key; `where` is the path under the root.

    Raises:
        UserError: there is none, a folder cannot be listed, or a name cannot stand in `keys.txt`.
    """
    found = []
    for label, name in enumerate(classes):
        folder = root / split / name
        if folder.is_dir():
            keys = ((f"{name}/{basename}", size_bytes) for basename, size_bytes in image_files(folder))
            found += [Sample(key, label, size_bytes, where=f"{split}/{key}") for key, size_bytes in keys]
    if not found:
        raise UserError(f"{root / split} has no images: looked for {some(IMAGE_SUFFIXES)} in its folders")
    return sorted_by_key(found)


def folders_in(folder: Path) -> set[str]:
    """The names of the folders in a folder, but for hidden ones.

    Raises:
        UserError: it cannot be listed.
    """
    with listing(folder), os.scandir(folder) as entries:
        return {entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")}


@contextmanager
def listing(folder: Path) -> Iterator[None]:
    """Say of a folder that it cannot be listed: a UserError in place of the system's."""
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


def refuse_unwritable_name(folder: Path, name: str) -> None:
    """Keys are lines of UTF-8 in `keys.txt` and strings in the manifest.

    Raises:
        UserError: this name cannot be one.
    """
    try:
        name.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{folder} has a name that is not UTF-8, {os.fsencode(name)!r}: rename it") from None
    if "\n" in name or "\r" in name:
        raise UserError(f"{folder} has a name with a line break in it, {name!r}: rename it")


def read_names(path: Path) -> dict[str, str]:
    """Kaggle's mapping, wnid to the first of its lemmas: `n01440764 tench, Tinca tinca` gives tench. Empty where there
    is no such file."""
    if not path.is_file():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split(maxsplit=1) for line in lines if line.strip())
    return {pair[0]: pair[-1].split(",")[0].strip() for pair in pairs}


def some(names: Sequence[str], most: int = 3) -> str:
    """The first few of many names, for a message."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
