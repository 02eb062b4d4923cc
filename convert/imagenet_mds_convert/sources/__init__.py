"""The sources, and how one is recognised.

To add a source: write a class that satisfies `Source` in a module of its own here, and recognise it in `open_source`.
"""

from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds_convert.source import Source
from imagenet_mds_convert.sources.kaggle import KaggleSource, find_kaggle
from imagenet_mds_convert.sources.tree import TreeSource

FORMATS = ("auto", "tree", "kaggle")


def open_source(location: str, source_format: str = "auto") -> Source:
    """Recognise a source by looking at it, or take it for what it is said to be.

    Args:
        location: what the user typed.
        source_format: one of `FORMATS`.

    Raises:
        UserError: nothing there, nothing in it, or a layout that no source has.
    """
    if location.startswith("s3://"):
        raise UserError(f"{location}: this version reads sources from local folders; copy it to a disk first")
    path = Path(location)
    if not path.exists():
        raise UserError(f"there is no source at {path}: give the folder that holds train/ and val/")
    if not path.is_dir():
        raise UserError(f"{path} is a file: give the folder that holds train/ and val/")
    if source_format == "kaggle" or (source_format == "auto" and find_kaggle(path)):
        return KaggleSource.open(path)
    return TreeSource.open(path)
