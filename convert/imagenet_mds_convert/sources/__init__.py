"""The sources, and how one is recognised.

To add a source, write a class that satisfies `Source` in a module of its own here, and give it a row in `_LAYOUTS`.
Each split is looked for by itself, so that an extracted train beside the archive of val is one source.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from imagenet_mds.errors import UserError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.archives import ArchivesSource, find_archives
from imagenet_mds_convert.sources.base import Source
from imagenet_mds_convert.sources.beside import note_packed_splits
from imagenet_mds_convert.sources.cifar10 import Cifar10Source, find_cifar10
from imagenet_mds_convert.sources.class_tars import ClassTarsSource, find_class_tars
from imagenet_mds_convert.sources.folders import find_listing
from imagenet_mds_convert.sources.hub import is_hub, open_hub
from imagenet_mds_convert.sources.kaggle import KaggleSource, find_kaggle_splits
from imagenet_mds_convert.sources.mixed import MixedSource
from imagenet_mds_convert.sources.parquet import ParquetSource
from imagenet_mds_convert.sources.parquet_files import find_parquet
from imagenet_mds_convert.sources.tree import TreeSource, find_filled_tree
from imagenet_mds_convert.sources.webdataset import WebDatasetSource, find_webdataset

_Found = Mapping[SplitName, str | Storage]


class _Layout(NamedTuple):
    kind: SourceKind
    find: Callable[[Storage, tuple[SplitName, ...]], _Found]
    """Returns what holds each of these splits that the layout has: a folder, or the name of a file."""
    open: Callable[[Storage, tuple[SplitName, ...]], Source]


def _of_splits(find: Callable[[Storage], _Found]) -> Callable[[Storage, tuple[SplitName, ...]], _Found]:
    """Finds some splits of a layout that is recognised without a look into a split's folder."""
    return lambda storage, splits: {split: what for split, what in find(storage).items() if split in splits}


_LAYOUTS = (
    _Layout("archives", _of_splits(find_archives), ArchivesSource.open),
    _Layout("parquet", _of_splits(find_parquet), ParquetSource.open),
    _Layout("cifar10", _of_splits(find_cifar10), Cifar10Source.open),
    _Layout("kaggle", _of_splits(find_kaggle_splits), KaggleSource.open),
    _Layout("class-tars", find_class_tars, ClassTarsSource.open),
    _Layout("webdataset", find_webdataset, WebDatasetSource.open),
    _Layout("tree", find_filled_tree, TreeSource.open),
)
"""In the order in which they are tried; the first one that finds a split in a folder has it."""


def open_source(
    location: str, source_format: Literal["auto", SourceKind] = "auto", split: SplitName | None = None
) -> Source:
    """Open a source: names, class lists and labels are read, and no image.

    Args:
        location: what the user typed.
        source_format: the layout; auto detects that of each split.
        split: the split that is wanted; None for all. Of another one nothing is read but what the class numbers need.

    Raises:
        UserError: nothing is there, it does not have the layout, or a split is there twice.
        WorldError: the Hugging Face hub does not answer.
    """
    splits = SPLITS if split is None else (split,)
    if is_hub(location):
        return open_hub(location, splits)
    refuse_no_folder(location)
    storage = open_storage(location)
    candidates = [layout for layout in _LAYOUTS if source_format in ("auto", layout.kind)]
    chosen = _that_hold(storage, location, splits, candidates)
    if len(set(chosen.values())) == 2:
        parts = {one: layout.open(storage, (one,)) for one, layout in chosen.items()}
        return MixedSource.of_parts(location, parts)
    # What is nowhere is refused by the layout that says best what is missing.
    layout = next(iter(chosen.values()), candidates[-1])
    source = layout.open(storage, splits)
    if notes := note_packed_splits(storage, [one for one in splits if one not in source.splits]):
        return cast(Source, replace(cast(Any, source), warnings=(*source.warnings, *notes)))
    return source


def reopen_source(location: str, split: SplitName, kind: SourceKind) -> Source:
    """Open a split of the source of a dataset: in the layout that it had then, or in any other one, since the same
    images give the same shards.

    Raises:
        UserError, WorldError: as `open_source`.
    """
    try:
        return open_source(location, kind, split)
    except UserError:
        return open_source(location, "auto", split)


def refuse_no_folder(location: str) -> None:
    """Refuse a location that is no folder, before anything else is done.

    Raises:
        UserError: nothing is there, or a file.
    """
    if is_hub(location):
        return
    storage = open_storage(location)
    if find_listing(storage) is None:
        if isinstance(storage, LocalStorage) and storage.root.is_file():
            raise UserError(f"{location} is a file: give a folder")
        if storage.remote and storage.name and storage.parent.size_bytes(storage.name) is not None:
            raise UserError(f"{location} is a file: give a folder")
        raise UserError(f"there is no source at {location}: give the folder that holds train/ and val/")


def _that_hold(
    storage: Storage, location: str, splits: tuple[SplitName, ...], candidates: Sequence[_Layout]
) -> dict[SplitName, _Layout]:
    """The layout of each split that is here; nothing if none is.

    Raises:
        UserError: a split is here in two places, or only splits that are not wanted are here.
    """
    places = _places(storage, splits, candidates)
    if not places and (there := list(_places(storage, SPLITS, candidates))):
        raise UserError(f"the source has no {splits[0]}/: it has {' and '.join(there)}; see `--split`")
    for split, found in places.items():
        if len(found) > 1:
            both = " and ".join(f"{place} ({layout.kind})" for place, layout in found.items())
            raise UserError(
                f"{location} has {split} twice: {both}. Move one of them elsewhere, or name the layout with "
                f"`--source-format`"
            )
    return {split: next(iter(found.values())) for split, found in places.items()}


def _places(
    storage: Storage, splits: tuple[SplitName, ...], candidates: Sequence[_Layout]
) -> dict[SplitName, dict[str, _Layout]]:
    """The places of each of these splits that is here, each with its layout. Other splits are not looked at.

    Raises:
        UserError: a folder cannot be listed, or a tree has a split twice.
    """
    places: dict[SplitName, dict[str, _Layout]] = {split: {} for split in splits}
    for layout in candidates:
        for split, what in layout.find(storage, splits).items():
            places[split].setdefault(_place(storage, what), layout)
    return {split: found for split, found in places.items() if found}


def _place(storage: Storage, what: str | Storage) -> str:
    """A place in one spelling, however it was reached."""
    if isinstance(what, str):
        return f"{storage.location}/{what}"
    return str(Path(what.root).resolve()) if isinstance(what, LocalStorage) else what.location
