"""Reading single samples of a dataset by index, without torch."""

from collections.abc import Iterator
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from imagenet_mds.dataset.manifest import read_keys
from imagenet_mds.dataset.mds import Record, decode_shard
from imagenet_mds.dataset.raw_pixels import open_stored
from imagenet_mds.dataset.split_info import SplitInfo
from imagenet_mds.dataset.stock_shards import NotAClass, decode_stock_shard
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.base import Readable


@dataclass(frozen=True)
class StoredSample:
    """A sample with its index in the split, the name of its shard, and its index in the shard."""

    sample: int
    shard: str
    place: int
    record: Record


def stored_samples(split: Readable, info: SplitInfo, start: int = 0) -> Iterator[StoredSample]:
    """Yield the samples of a split in stored order, from index `start` on. Shards before it are not read.

    Raises:
        UserError: a label of a stock dataset is no class number.
        WorldError: a shard is damaged.
        OSError: a shard cannot be read.
    """
    decode = decode_shard if info.classes else decode_stock_shard
    first = 0
    for shard in info.shards:
        if first + shard.samples > start:
            data, path = split.read(shard.basename), f"{split.location}/{shard.basename}"
            try:
                for place, record in enumerate(decode(data, path)):
                    if info.classes and not 0 <= record.label < len(info.classes):
                        raise ValueError(f"{path}: sample {place} is of class {record.label}, which does not exist")
                    if first + place >= start:
                        yield StoredSample(first + place, shard.basename, place, record)
            except NotAClass as error:
                raise UserError(f"{error}: give a dataset with class numbers in y, as numbers or text") from None
            except ValueError as error:
                raise WorldError(f"{error}: {_hint(split, info)}") from None
        first += shard.samples


def open_sample(split: Readable, info: SplitInfo, stored: StoredSample, *, decoded: bool = True) -> Image.Image:
    """Open the image of a stored sample. With `decoded=False` only its size and mode are read.

    Raises:
        WorldError: the image is damaged.
    """
    try:
        image = open_stored(stored.record.image)
        if decoded:
            image.load()
    except Exception as error:  # Pillow's plugins raise anything
        key = f" ({read_keys(split, info.samples)[stored.sample]})" if info.classes else ""
        # Pillow's message would show the address of the buffer.
        reason = "no image that can be read" if isinstance(error, UnidentifiedImageError) else error
        raise WorldError(
            f"{split.location}: sample {stored.sample:,}{key} does not decode ({reason}): {_hint(split, info)}"
        ) from None
    return image


def _hint(split: Readable, info: SplitInfo) -> str:
    if info.classes is None:
        return "copy it again from where it came from"
    return f"`imagenet-mds verify {split.parent.location} --deep` finds all that is damaged"
