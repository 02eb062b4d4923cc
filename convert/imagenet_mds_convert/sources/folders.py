"""Folders of images, on a disk or in S3: the code shared by sources that read plain files.

A folder is listed once, with sizes, and no file is looked up on its own unless its name has no suffix. In S3 that takes
one request per thousand files, and several folders are listed at once.
"""

import os
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise

from imagenet_mds.dataset.manifest import NotTaken
from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Listing, Storage
from imagenet_mds_convert.sources.base import Found, Sample
from imagenet_mds_convert.sources.classes import WNID
from imagenet_mds_convert.sources.names import NotTakenCount, is_image, is_system_file, is_system_folder
from imagenet_mds_convert.sources.parallel import reads_at_once, run_ahead

_DEEPEST = 32
"""Levels of folders below a class; more are a link that leads back to a folder above it."""


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


FLAT_FOLDERS = ("", "images")
"""Where the images of a split without class folders lie in it; Tiny-ImageNet has them in `images`."""


@dataclass(frozen=True)
class FlatFolder:
    """The images of a folder without class folders, (path within it, size in bytes), and the files that are none."""

    images: list[tuple[str, int]]
    not_taken: tuple[NotTaken, ...]


def list_flat(folder: Storage, place: str) -> FlatFolder:
    """List what lies directly in a folder of images; nothing if there is no such folder.

    Args:
        folder: the folder.
        place: what it is called in the count of files that are not taken.

    Raises:
        UserError: the folder cannot be listed, or a name cannot be written to `keys.txt`.
    """
    images, count = [], NotTakenCount()
    found = find_listing(folder) or Listing((), ())
    count_others(found, place, "", count)
    for entry in found.files:
        if is_image(entry.name, partial(folder.read_range, entry.name, 0)):
            refuse_unwritable_name(folder, entry.name)
            images.append((entry.name, entry.size_bytes))
        else:
            count.count(place, entry.name, entry.name)
    return FlatFolder(images, count.not_taken())


@dataclass(frozen=True)
class ClassFolders:
    """The class folders of a split.

    `images` maps the name of each that holds an image to its images: (path within the class folder, size in bytes).
    `empty` are the folders without one, `skipped` those that are the system's own or cannot be read.
    """

    split: Storage
    images: dict[str, list[tuple[str, int]]]
    empty: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()
    not_taken: tuple[NotTaken, ...] = ()

    def number(self, classes: Sequence[str]) -> Found:
        """The images as samples of these classes, which include every folder's, if need be in another Unicode form;
        `where` is the path under the root."""
        numbers = {normal_form(name): number for number, name in enumerate(classes)}
        samples = (
            Sample(f"{name}/{path}", numbers[normal_form(name)], size_bytes, f"{self.split.name}/{name}/{path}")
            for name, images in self.images.items()
            for path, size_bytes in images
        )
        return Found(sorted_by_key(samples), self.not_taken)


def normal_form(name: str) -> str:
    """A name in Unicode's composed form (NFC). macOS stores names decomposed, so that one class may be spelled in two
    ways in two splits."""
    return unicodedata.normalize("NFC", name)


@dataclass
class _ClassFolder:
    """What one class folder holds; `error` is the reason if it cannot be listed."""

    name: str
    images: list[tuple[str, int]] = field(default_factory=list)
    count: NotTakenCount = field(default_factory=NotTakenCount)
    error: UserError | None = None


def list_class_folders(split: Storage) -> ClassFolders:
    """List the class folders of a split to any depth, as torchvision's ImageFolder does.

    Args:
        split: the folder that holds the class folders, which exists.

    Raises:
        UserError: a folder that may be a class cannot be listed, or a name cannot be written to `keys.txt`.
    """
    top = find_listing(split) or Listing((), ())
    count = NotTakenCount()
    count_others(top, f"{split.name}/", "", count)
    for entry in top.files:
        count.count(f"{split.name}/", entry.name, entry.name)
    system = [name for name in top.folders if is_system_folder(name)]
    names = sorted(set(top.folders) - set(system))
    for name in names:
        refuse_unwritable_name(split, name)
    for name, other in pairwise(sorted(names, key=normal_form)):
        if normal_form(name) == normal_form(other):
            raise UserError(
                f"{split.location} has two folders named {normal_form(name)}, composed and decomposed: put the images "
                f"of one into the other"
            )
    calls = (partial(_list_class, split, name) for name in names)
    listed = [call() for call in run_ahead(calls, reads_at_once(split))]
    wnids = sum(bool(WNID.match(one.name)) for one in listed if not one.error)
    for one in listed:
        count.add(one.count)
        # Among wnids only a wnid can be a class; among other names every folder can.
        if one.error and (WNID.match(one.name) or not wnids):
            raise one.error
    return ClassFolders(
        split,
        {one.name: one.images for one in listed if one.images},
        tuple(one.name for one in listed if not one.images and not one.error),
        tuple(sorted([name for name in system if not name.startswith(".")] + [x.name for x in listed if x.error])),
        count.not_taken(),
    )


def _list_class(split: Storage, name: str) -> _ClassFolder:
    found = _ClassFolder(name)
    folder = split.child(name)
    try:
        top = folder.listing()
    except OSError as error:
        found.error = UserError(f"{folder.location} cannot be listed: {error.strerror or error}")
        return found
    _take(folder, top, "", f"{split.name}/<class>/", found, depth=0)
    return found


def _take(folder: Storage, listing: Listing, prefix: str, place: str, found: _ClassFolder, depth: int) -> None:
    """Take the images of a folder and of those in it."""
    count_others(listing, place, f"{found.name}/{prefix}", found.count)
    for entry in listing.files:
        if is_image(entry.name, partial(folder.read_range, entry.name, 0)):
            refuse_unwritable_name(folder, entry.name)
            found.images.append((f"{prefix}{entry.name}", entry.size_bytes))
        else:
            found.count.count(place, entry.name, f"{found.name}/{prefix}{entry.name}")
    if listing.folders and depth == _DEEPEST:
        raise UserError(
            f"{folder.location} lies more than {_DEEPEST} folders deep: a link probably leads back to a folder above it"
        )
    for name in listing.folders:
        if is_system_folder(name):
            continue
        refuse_unwritable_name(folder, name)
        inner = folder.child(name)
        if below := find_listing(inner):
            _take(inner, below, f"{prefix}{name}/", f"{place}*/" if depth == 0 else place, found, depth + 1)


def count_others(listing: Listing, place: str, prefix: str, count: NotTakenCount) -> None:
    """Count the pipes, sockets and devices of a folder as not taken; reading a pipe would wait for ever."""
    for name in listing.others:
        count.count(place, name, f"{prefix}{name} (not a file)")


def folders_in(folder: Storage) -> set[str] | None:
    """The names of the folders in a folder, except hidden and system ones; None if it does not exist.

    Raises:
        UserError: it cannot be listed.
    """
    found = find_listing(folder)
    return {name for name in found.folders if not is_system_folder(name)} if found else None


def names_in(folder: Storage) -> list[str]:
    """The names of the files and folders in a folder, sorted, except hidden and system ones; none if there is no such
    folder.

    Raises:
        UserError: it cannot be listed.
    """
    found = find_listing(folder)
    if found is None:
        return []
    files = [entry.name for entry in found.files if not is_system_file(entry.name)]
    return sorted(files + [name for name in found.folders if not is_system_folder(name)])


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


def folder_notes(listed: Iterable[ClassFolders], classes: Iterable[str]) -> list[str]:
    """What a person should know about the folders that are no class, or a class without an image; a line per split.

    Args:
        listed: the class folders of each split.
        classes: the source's classes.
    """
    notes = []
    for split in listed:
        if split.skipped:
            notes.append(f"{split.split.location} has folders that are not read: {some(split.skipped)}")
        known = {normal_form(name) for name in classes}
        if others := sorted(name for name in split.empty if normal_form(name) not in known):
            notes.append(f"{split.split.location} has folders without an image, which are no classes: {some(others)}")
        if empty := sorted(name for name in split.empty if normal_form(name) in known):
            notes.append(
                f"{split.split.location} has classes without an image: {some(empty)}; "
                f"if an extraction broke off, repeat it"
            )
    return notes


def number_notes(classes: Sequence[str]) -> list[str]:
    """A note if class folders are numbers and sorting them as text gives other class numbers than they name."""
    if all(name.isascii() and name.isdigit() for name in classes) and list(classes) != sorted(classes, key=int):
        first = next(name for name, by_value in zip(classes, sorted(classes, key=int), strict=True) if name != by_value)
        number = list(classes).index(first)
        return [
            f"class folders are numbers, and are sorted as text, as everywhere: {first} is class {number}; "
            f"pad them with zeros if their values should be the class numbers"
        ]
    return []


def some(names: Sequence[str], most: int = 3) -> str:
    """Format names for a message: at most `most` of them, then how many more there are."""
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"


def label_of(name: str, labels: Mapping[str, str]) -> str | None:
    """The class of an image by a table of names with or without their suffixes; None if it has no line."""
    return labels.get(name, labels.get(name.rpartition(".")[0]))


def flat_folder(listed: ClassFolders) -> FlatFolder:
    """The images of a split whose folders are no classes: those directly in it and those in its folders."""
    place = f"{listed.split.name}/"
    direct = list_flat(listed.split, place)
    below = [(f"{name}/{path}", size_bytes) for name, images in listed.images.items() for path, size_bytes in images]
    # `listed` counts the images directly in the split as not taken.
    not_taken = tuple(entry for entry in listed.not_taken if entry.place != place)
    return FlatFolder(direct.images + below, direct.not_taken + not_taken)


def classes_of(listed: FlatFolder, labels: Mapping[str, str]) -> set[str]:
    """The classes of the images of a folder."""
    found = (label_of(path.rpartition("/")[2], labels) for path, _ in listed.images)
    return {label for label in found if label is not None}


def flat_samples(
    folder: Storage, listed: FlatFolder, labels: Mapping[str, str], table: str, classes: Sequence[str]
) -> Found:
    """The images of a split without class folders, labelled by a table.

    Images of other folders than `FLAT_FOLDERS` are not taken if the table does not list them.

    Args:
        folder: the split's folder.
        listed: its content.
        labels: maps a file's name, or its name without the suffix, to its class.
        table: the location of the table, for messages.
        classes: the source's classes.

    Raises:
        UserError: an image has no label, or two have one name.
    """
    numbers = {name: number for number, name in enumerate(classes)}
    samples, count = [], NotTakenCount()
    for path, size_bytes in listed.images:
        inner, _, name = path.rpartition("/")
        label = label_of(name, labels)
        if label is not None:
            samples.append(Sample(f"{label}/{name}", numbers[label], size_bytes, where=f"{folder.name}/{path}"))
        elif inner in FLAT_FOLDERS:
            raise UserError(f"{folder.location}/{path} has no line in {table}, so its label is unknown: remove it")
        else:
            count.count(f"{folder.name}/*/", name, path)
    found = sorted_by_key(samples)
    for one, other in pairwise(found):
        if one.key == other.key:
            raise UserError(
                f"{folder.location} has two images of one name, {one.where} and {other.where}, and {table} has one "
                f"label for both: remove one of them"
            )
    return Found(found, listed.not_taken + count.not_taken())
