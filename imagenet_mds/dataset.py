"""Looking into a dataset: its stored samples by their place, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from imagenet_mds.contents import Contents
from imagenet_mds.errors import WorldError
from imagenet_mds.manifest import read_keys
from imagenet_mds.mds import Record, decode_shard, decode_stock_shard
from imagenet_mds.raw import open_stored
from imagenet_mds.storage.base import Readable
from imagenet_mds.storage.local import as_storage


@dataclass(frozen=True)
class Stored:
    """A sample and where it stands: its place in the split, the shard's file name, its place in the shard."""

    sample: int
    shard: str
    place: int
    record: Record


def stored_samples(where: Path | Readable, contents: Contents, start: int = 0) -> Iterator[Stored]:
    """The samples of a split in stored order, from number `start` on; shards before it are not read.

    Raises:
        WorldError: a shard is damaged.
    """
    split = as_storage(where)
    decode = decode_shard if contents.classes else decode_stock_shard
    first = 0
    for shard in contents.shards:
        if first + shard.samples > start:
            data, path = split.read(shard.basename), f"{split.location}/{shard.basename}"
            try:
                for place, record in enumerate(decode(data, path)):
                    if contents.classes and not 0 <= record.label < len(contents.classes):
                        raise ValueError(f"{path}: sample {place} is of class {record.label}, which there is not")
                    if first + place >= start:
                        yield Stored(first + place, shard.basename, place, record)
            except ValueError as error:
                raise WorldError(f"{error}: {_mend(split, contents)}") from None
        first += shard.samples


def open_sample(split: Readable, contents: Contents, stored: Stored, *, decoded: bool = True) -> Image.Image:
    """The picture of a stored sample, decoded or, if that is not wanted, with its size and mode alone.

    Raises:
        WorldError: it is damaged.
    """
    try:
        image = open_stored(stored.record.image)
        if decoded:
            image.load()
    except Exception as error:  # of whatever kind Pillow raises
        key = f" ({read_keys(split)[stored.sample]})" if contents.classes else ""
        # Pillow would name the memory that the file is in.
        reason = "no image that can be read" if isinstance(error, UnidentifiedImageError) else error
        raise WorldError(
            f"{split.location}: sample {stored.sample:,}{key} does not decode ({reason}): {_mend(split, contents)}"
        ) from None
    return image


def _mend(split: Readable, contents: Contents) -> str:
    if contents.classes is None:
        return "get it again from where it came from"
    return f"`imagenet-mds verify {split.parent.location} --deep` finds all that is damaged"
