"""The MDS shard format, written and read by hand.

A shard is `uint32 samples`, `uint32 offset` of each sample and of the end (from the start of the file), a JSON header,
then the samples. A sample is the `uint32` byte lengths of its columns of variable size, then the columns in name order.
The library's own writer makes the same format (`streaming/base/format/mds/writer.py`, version 2) but encodes column by
column through copies and takes twice the time; its readers open what is written here, and a test holds that.

The columns are those of the library's StreamingImageNet: `i` (int64: the index in the sorted source), `x` (the JPEG
file's bytes) and `y` (int64: the class).
"""

import json
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

INDEX_BASENAME = "index.json"

_VERSION = 2
_LAYOUT: dict[str, Any] = {
    "column_names": ["i", "x", "y"],
    "column_sizes": [8, None, 8],
    "compression": None,
    "format": "mds",
    "hashes": ["xxh64"],
    "version": _VERSION,
}


def _layout(size_limit_bytes: int, raw: bool) -> dict[str, Any]:
    return _LAYOUT | {"column_encodings": ["int", "pil" if raw else "jpeg", "int"], "size_limit": size_limit_bytes}


_OFFSETS_END = 1 << 32
_FIXED_BYTES_PER_SAMPLE = 4 + 8 + 8  # the length of x, then i and y


@dataclass(frozen=True)
class Record:
    """One stored sample: `index` in the sorted source, the bytes of `image` (a JPEG file, or a raw sample, see
    `raw.py`), the class number `label`."""

    index: int
    image: bytes
    label: int


@dataclass(frozen=True)
class ShardInfo:
    """What the index and the manifest say of a shard: file name, size in bytes, xxh64 in hexadecimal (empty where its
    writer made none), samples."""

    basename: str
    size_bytes: int
    xxh64: str
    samples: int


def shard_basename(shard: int) -> str:
    """The file name of shard number `shard`, as the library numbers them."""
    return f"shard.{shard:05}.mds"


class ShardEncoder:
    """Puts a shard file together in one piece of memory, sample by sample, so that what is done can be on its way to
    the disk while the rest is read.

    The table of offsets stands before the samples and its length depends on their number, so that is said beforehand;
    if fewer come, the samples are moved at the end.

    Args:
        most_samples: how many samples will come, or more.
        size_limit_bytes: what the header says the limit was; readers do not use it.
        buffer: memory to work in, used from its beginning; more is taken where it does not suffice. A process that
            keeps it for all its shards spares the kernel the clearing of fresh pages, which costs as much as copying
            the images.
        images_bytes: how much the images will most likely be together; so much memory is taken at once.
        raw: the images are raw samples, no JPEG files.
    """

    def __init__(
        self,
        most_samples: int,
        size_limit_bytes: int,
        buffer: bytearray | None = None,
        *,
        images_bytes: int = 0,
        raw: bool = False,
    ) -> None:
        self._header = json.dumps(_layout(size_limit_bytes, raw), sort_keys=True).encode("utf-8")
        self._start = self._end = self._head_bytes(most_samples)
        likely = self._start + images_bytes + most_samples * _FIXED_BYTES_PER_SAMPLE
        self._buffer = buffer if buffer is not None and len(buffer) >= likely else bytearray(likely)
        self._ends: list[int] = []

    def _head_bytes(self, samples: int) -> int:
        return 4 + 4 * (samples + 1) + len(self._header)

    @property
    def samples(self) -> int:
        """How many samples have come."""
        return len(self._ends)

    @property
    def filled(self) -> tuple[int, int]:
        """Where the samples that have come lie in the buffer, and in the file if as many come as were announced."""
        return self._start, self._end

    def add(self, record: Record) -> None:
        """The next sample.

        Raises:
            ValueError: the shard would reach 4 GiB, where its offsets end.
        """
        length = len(record.image)
        at, end = self._end, self._end + length + _FIXED_BYTES_PER_SAMPLE
        if end >= _OFFSETS_END:
            raise ValueError(f"a shard of {end:,} bytes cannot be addressed: MDS offsets end at {_OFFSETS_END:,}")
        if end > len(self._buffer):
            # Never in place: what `view` has given out may be on its way to the disk.
            longer = bytearray(max(end, len(self._buffer) * 5 // 4))
            longer[:at] = memoryview(self._buffer)[:at]
            self._buffer = longer
        struct.pack_into("<Iq", self._buffer, at, length, record.index)
        self._buffer[at + 12 : at + 12 + length] = record.image
        struct.pack_into("<q", self._buffer, at + 12 + length, record.label)
        self._end = end
        self._ends.append(end)

    def view(self, start: int, end: int) -> memoryview:
        """A part of the buffer. It stays as it is until `finish`, which moves it if fewer samples have come."""
        return memoryview(self._buffer)[start:end]

    def finish(self) -> memoryview:
        """The whole file. The buffer must not be used before it is let go."""
        head_bytes = self._head_bytes(self.samples)
        moved = self._start - head_bytes
        # offsets: (samples + 1), of each sample and of the end of the file
        offsets = np.array([self._start, *self._ends], np.int64) - moved
        if moved:
            self._buffer[head_bytes : self._end - moved] = self._buffer[self._start : self._end]
        head = struct.pack("<I", self.samples) + offsets.astype("<u4").tobytes() + self._header
        self._buffer[:head_bytes] = head
        return memoryview(self._buffer)[: int(offsets[-1])]


def encode_shard(records: Sequence[Record], size_limit_bytes: int) -> bytes:
    """The bytes of a shard file with these samples, in order.

    Raises:
        ValueError: as `ShardEncoder.add`.
    """
    encoder = ShardEncoder(len(records), size_limit_bytes)
    for record in records:
        encoder.add(record)
    return bytes(encoder.finish())


def describe_shard(basename: str, data: bytes | memoryview, samples: int) -> ShardInfo:
    """Hash and size of a shard's bytes."""
    return ShardInfo(basename, len(data), xxhash.xxh64(data).hexdigest(), samples)


def index_json(shards: Sequence[ShardInfo], size_limit_bytes: int, *, raw: bool = False) -> dict[str, Any]:
    """The `index.json` that makes a folder of shards a dataset for every reader of the library."""
    return {
        "version": _VERSION,
        "shards": [
            _layout(size_limit_bytes, raw)
            | {
                "raw_data": {
                    "basename": shard.basename,
                    "bytes": shard.size_bytes,
                    "hashes": {"xxh64": shard.xxh64},
                },
                "samples": shard.samples,
                "zip_data": None,
            }
            for shard in shards
        ],
    }


def decode_stock_shard(data: bytes, path: str) -> Iterator[Record]:
    """The samples of a shard of any writer that has images in `x` and classes in `y`, by the header in the shard; where
    there is no `i`, a sample's index is its place.

    Args:
        data: the file's bytes.
        path: its name in messages.

    Raises:
        ValueError: the file is not such a shard, or is cut short.
    """
    try:
        (samples,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", samples + 1, offset=4).tolist()
        header = json.loads(data[4 + 4 * len(offsets) : offsets[0]])
        names, sizes = header["column_names"], header["column_sizes"]
        variable = sizes.count(None)
        for place, at in enumerate(offsets[:-1]):
            lengths = iter(struct.unpack_from(f"<{variable}I", data, at))
            at += 4 * variable
            cells = {}
            for name, size in zip(names, sizes, strict=True):
                end = at + (next(lengths) if size is None else size)
                cells[name], at = data[at:end], end
            index = int.from_bytes(cells["i"], "little", signed=True) if "i" in cells else place
            yield Record(index, cells["x"], int.from_bytes(cells["y"], "little", signed=True))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no MDS shard of images in x and classes in y ({error!r})") from None


def read_shard(path: Path) -> Iterator[Record]:
    """The samples of a shard file, as `decode_shard`."""
    return decode_shard(path.read_bytes(), str(path))


def decode_shard(data: bytes, path: str) -> Iterator[Record]:
    """The samples of a shard written by `encode_shard`, in order.

    Args:
        data: the file's bytes.
        path: its name in messages.

    Raises:
        ValueError: the file is not such a shard, or is cut short.
    """
    if len(data) < 8:
        raise ValueError(f"{path} is not an MDS shard: {len(data)} bytes")
    (samples,) = struct.unpack_from("<I", data)
    if len(data) < 4 + 4 * (samples + 1):
        raise ValueError(f"{path} is not an MDS shard: its table of {samples} samples is cut short")
    offsets = np.frombuffer(data, "<u4", samples + 1, offset=4)
    if offsets[-1] != len(data):
        raise ValueError(f"{path} should end at byte {offsets[-1]} and ends at {len(data)}")
    # (samples) of (start, end)
    bounds = zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)
    for position, (start, end) in enumerate(bounds):
        if not 4 + offsets.nbytes <= start <= end - _FIXED_BYTES_PER_SAMPLE:
            raise ValueError(f"{path}: sample {position} lies from byte {start} to {end}, which cannot be")
        length, index = struct.unpack_from("<Iq", data, start)
        if length != end - start - _FIXED_BYTES_PER_SAMPLE:
            raise ValueError(f"{path}: sample {position} says {length} bytes, in a place for {end - start}")
        image = data[start + 12 : start + 12 + length]
        (label,) = struct.unpack_from("<q", data, start + 12 + length)
        yield Record(index, image, label)
