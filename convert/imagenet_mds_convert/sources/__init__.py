"""The sources, and how one is recognised.

To add a source: write a class that satisfies `Source` in a module of its own here, and recognise it in `open_source`.
"""

from imagenet_mds.errors import UserError
from imagenet_mds.storage import open_storage
from imagenet_mds_convert.sources.archives import ArchivesSource, has_archives
from imagenet_mds_convert.sources.base import Source
from imagenet_mds_convert.sources.cifar10 import Cifar10Source, find_cifar10
from imagenet_mds_convert.sources.folders import find_listing
from imagenet_mds_convert.sources.hub import is_hub, open_hub
from imagenet_mds_convert.sources.kaggle import KaggleSource, find_kaggle
from imagenet_mds_convert.sources.parquet import ParquetSource, parquet_files
from imagenet_mds_convert.sources.tree import TreeSource

FORMATS = ("auto", "tree", "kaggle", "archives", "parquet", "cifar10")


def open_source(location: str, source_format: str = "auto") -> Source:
    """Recognise a source by looking at it, or take it for what it is said to be.

    Args:
        location: what the user typed.
        source_format: one of `FORMATS`.

    Raises:
        UserError: nothing there, nothing in it, or a layout that no source has.
    """
    if is_hub(location):
        return open_hub(location)
    storage = open_storage(location)
    if find_listing(storage) is None:
        if storage.remote and storage.name and storage.parent.size_bytes(storage.name) is not None:
            raise UserError(f"{location} is a file: give a folder")
        raise UserError(f"there is no source at {location}: give the folder that holds train/ and val/")
    if source_format == "archives" or (source_format == "auto" and has_archives(storage)):
        return ArchivesSource.open(storage)
    if source_format == "parquet" or (source_format == "auto" and parquet_files(storage)):
        return ParquetSource.open(storage)
    if source_format == "cifar10" or (source_format == "auto" and find_cifar10(storage)):
        return Cifar10Source.open(storage)
    if source_format == "kaggle" or (source_format == "auto" and find_kaggle(storage)):
        return KaggleSource.open(storage)
    return TreeSource.open(storage)
