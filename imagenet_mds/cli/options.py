"""Options that several commands share, and how their values are parsed."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from imagenet_mds.errors import UserError

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Dataset

DatasetArgument = Annotated[
    str,
    typer.Argument(metavar="DATASET", help="Dataset that `convert` wrote: a folder or an s3:// address."),
]
CheckpointArgument = Annotated[
    str, typer.Argument(metavar="CHECKPOINT", help="A .pt file, or a run's folder for its newest checkpoint.")
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Configuration overrides, for example optimizer.lr=0.1."),
]
Phase = Annotated[Literal["1", "2", "3"] | None, typer.Option(help="Shipped configuration of a phase.")]
ConfigName = Annotated[str | None, typer.Option(help="YAML file, or the name of a shipped configuration.")]
DataLocation = Annotated[
    str | None, typer.Option(metavar="DATASET", help="Converted dataset: a folder or an s3:// address.")
]
Ranks = Annotated[int | None, typer.Option(min=1, help="Number of processes, one per GPU.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON output.")]
CacheFolder = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder for shards fetched from S3; ~/.cache/imagenet-mds by default."),
]
CacheLimit = Annotated[
    str | None,
    typer.Option(metavar="SIZE", help="Maximum cache size per split, for example 100GB; unlimited by default."),
]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def config_name(phase: str | None, config: str | None) -> str:
    """The configuration that the options --phase and --config name.

    Raises:
        UserError: neither is given, or both are.
    """
    if (phase is None) == (config is None):
        raise UserError("pass either --phase 1, 2 or 3 or --config FILE: they say what to train")
    return config or f"phase{phase}"


def given_data(data: str | None) -> str:
    """The value of the option --data.

    Raises:
        UserError: it is not given.
    """
    if data is None:
        raise UserError("pass --data DATASET: the folder that `imagenet-mds convert` wrote")
    return data


def parse_size(text: str, option: str) -> int:
    """Convert a size such as `64MiB`, `50 MB` or `1048576` to bytes.

    Args:
        text: the size as typed.
        option: the name of the option, which the error message starts with.

    Raises:
        UserError: the text is not a size.
    """
    match = re.fullmatch(r"(\d{1,18}(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].upper() not in _UNITS:
        raise UserError(
            f"{option} {text}: pass a number with B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, for example 64MiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def open_dataset(location: str, cache: Path | None, cache_limit: str | None) -> "Dataset":
    """Open a dataset with the options --cache and --cache-limit.

    Raises:
        UserError: the limit is not a size, or the three do not fit together.
    """
    from imagenet_mds.dataset.access import Dataset

    return Dataset.at(location, cache, parse_size(cache_limit, "--cache-limit") if cache_limit is not None else None)
