"""The sources, and how one is recognised.

To add a source, write a class that satisfies `Source` in a module of its own here, and give it a row in `_LAYOUTS`.
"""

from collections.abc import Callable
from typing import Literal, NamedTuple

from imagenet_mds.errors import UserError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SourceKind
from imagenet_mds_convert.sources.archives import ArchivesSource, has_archives
from imagenet_mds_convert.sources.base import Source
from imagenet_mds_convert.sources.cifar10 import Cifar10Source, find_cifar10
from imagenet_mds_convert.sources.folders import find_listing
from imagenet_mds_convert.sources.hub import is_hub, open_hub
from imagenet_mds_convert.sources.kaggle import KaggleSource, find_kaggle
from imagenet_mds_convert.sources.parquet import ParquetSource, parquet_files
from imagenet_mds_convert.sources.tree import TreeSource


class _Layout(NamedTuple):
    kind: SourceKind
    recognise: Callable[[Storage], object]
    """Returns something true where the layout is found."""
    open: Callable[[Storage], Source]


_LAYOUTS = (
    _Layout("archives", has_archives, ArchivesSource.open),
    _Layout("parquet", parquet_files, ParquetSource.open),
    _Layout("cifar10", find_cifar10, Cifar10Source.open),
    _Layout("kaggle", find_kaggle, KaggleSource.open),
    _Layout("tree", lambda storage: True, TreeSource.open),
)
"""In the order in which they are tried."""


def open_source(location: str, source_format: Literal["auto", SourceKind] = "auto") -> Source:
    """Open a source; nothing but names and class lists is read.

    Args:
        location: what the user typed.
        source_format: the layout; auto detects it.

    Raises:
        UserError: nothing is there, or it does not have the layout.
        WorldError: the Hugging Face hub does not answer.
    """
    if is_hub(location):
        return open_hub(location)
    storage = open_storage(location)
    if find_listing(storage) is None:
        if storage.remote and storage.name and storage.parent.size_bytes(storage.name) is not None:
            raise UserError(f"{location} is a file: give a folder")
        raise UserError(f"there is no source at {location}: give the folder that holds train/ and val/")
    layout = next(
        layout
        for layout in _LAYOUTS
        if source_format == layout.kind or (source_format == "auto" and layout.recognise(storage))
    )
    return layout.open(storage)
