"""The words that options, manifests and code share, each declared once.

typer takes a `Literal` as an option's choices and pydantic as a field's, so no enumeration repeats them.
"""

from typing import Literal, get_args

SplitName = Literal["train", "val"]

SourceKind = Literal["tree", "kaggle", "archives", "parquet", "cifar10"]
"""The layouts that sources come in."""

CheckLevel = Literal["decode", "structure", "none"]
"""How thoroughly each image is checked: every coefficient, the markers, or the header alone."""

StoredForm = Literal["file", "tiles", "raw"]
"""How an image is stored: its file, its file with restart tiles where it can have them, or its pixels."""

EngineName = Literal["local", "ray"]
"""What runs the shard tasks of a conversion."""

SubsetName = Literal["tiny", "small", "medium", "large"]

SPLITS: tuple[SplitName, ...] = get_args(SplitName)
