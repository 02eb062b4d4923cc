"""The words that options, manifests and code share, each declared once.

typer accepts a `Literal` as the choices of an option and pydantic as the values of a field, so no enumeration repeats
them.
"""

from typing import Literal, get_args

SplitName = Literal["train", "val"]

SourceKind = Literal["tree", "kaggle", "archives", "class-tars", "webdataset", "parquet", "cifar10"]
"""Layouts of a source."""

ClassNumbers = Literal["imagenet", "present"]
"""How classes are numbered where all are ImageNet's: as the 1,000, or those with an image alone. Other classes are
numbered alone in any case."""

CheckLevel = Literal["decode", "structure", "none"]
"""How thoroughly each image is checked: by decoding it, by its markers, or by its header alone."""

StoredForm = Literal["file", "tiles", "raw"]
"""How an image is stored: as its file, as its file with restart tiles if possible, or as pixels."""

EngineName = Literal["local", "ray"]
"""What runs the shard tasks of a conversion: processes of this machine, or a Ray cluster."""

SubsetName = Literal["tiny", "small", "medium", "large"]

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
