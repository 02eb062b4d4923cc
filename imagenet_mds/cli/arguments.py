"""What people type, as values."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.errors import UserError

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Dataset

CacheFolder = Annotated[
    Path | None, typer.Option(metavar="FOLDER", help="Cache for shards from S3 (default: ~/.cache/imagenet-mds).")
]
CacheLimit = Annotated[
    str | None, typer.Option(metavar="SIZE", help="Maximum cache size per split, for example 100GB.")
]

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}


def parse_size(text: str, option: str) -> int:
    """A size in bytes: `64MiB`, `50 MB`, `1048576`.

    Args:
        text: what was typed.
        option: for which option, for the message.

    Raises:
        UserError: not a size.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-zA-Z]*)", text.strip())
    if not match or match[2].upper() not in _UNITS:
        raise UserError(
            f"{option} {text}: give a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB, for example 64MiB"
        )
    return int(float(match[1]) * _UNITS[match[2].upper()])


def open_dataset(location: str, cache: Path | None, cache_limit: str | None) -> "Dataset":
    """The dataset of --data, with --cache and --cache-limit.

    Raises:
        UserError: they do not fit together.
    """
    from imagenet_mds.dataset.access import Dataset  # numpy

    return Dataset.at(location, cache, parse_size(cache_limit, "--cache-limit") if cache_limit else None)
