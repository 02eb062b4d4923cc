"""The MDS shard format, written and read by hand.

A shard is `uint32 samples`, `uint32 offset` of each sample and of the end (from the start of the file), a JSON header,
then the samples. A sample is the `uint32` byte lengths of its columns of variable size, then the columns in name order.
The library's own writer makes the same format (`streaming/base/format/mds/writer.py`, version 2) but encodes column by
column through copies and takes twice the time; its readers open what is written here, and a test holds that.

The columns are those of the library's StreamingImageNet: `i` (int64: the index in the sorted source), `x` (the JPEG
file's bytes) and `y` (int64: the class).
"""

import errno
import json
import os
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
import xxhash
from pydantic import ConfigDict, Field

INDEX_BASENAME = "index.json"

Count = Annotated[int, Field(ge=0)]

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


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ShardInfo:
    """What the index and the manifest record about a shard file. `xxh64` is hexadecimal, empty where the writer of the
    index recorded no hash."""

    basename: str
    size_bytes: Count
    xxh64: str
    samples: Count


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


def column_spans(data: bytes | memoryview, column_sizes: Sequence[int | None], start: int = 0) -> list[tuple[int, int]]:
    """Where the columns of a sample lie.

    A sample is the uint32 lengths of its columns of variable size, then the columns.

    Args:
        data: bytes that hold the sample.
        column_sizes: the size of each column in bytes, None where it varies; `column_sizes` in a shard's header.
        start: where the sample begins in `data`.

    Returns:
        (start, end) in `data` of each column.

    Raises:
        struct.error: `data` ends within the lengths.
    """
    variable = column_sizes.count(None)
    lengths, at = iter(struct.unpack_from(f"<{variable}I", data, start)), start + 4 * variable
    spans = []
    for size in column_sizes:
        end = at + (next(lengths) if size is None else size)
        spans.append((at, end))
        at = end
    return spans


def decode_label(encoding: str, data: bytes) -> int:
    """A class number from the cell of a label column.

    Args:
        encoding: the column's encoding in the header: an integer, a float or a string of the library's.
        data: the cell.

    Raises:
        ValueError: an encoding that holds no class number.
    """
    if re.fullmatch(r"u?int(8|16|32|64)?", encoding):
        return int.from_bytes(data, "little", signed=not encoding.startswith("u"))
    if encoding in ("str", "str_int", "str_float", "str_decimal"):
        return int(float(data))
    if encoding in ("float16", "float32", "float64"):
        return int(np.frombuffer(data, encoding)[0])
    raise ValueError(f"column y holds {encoding} where class numbers should be")


def decode_stock_shard(data: bytes, path: str) -> Iterator[Record]:
    """The samples of a shard from any writer that has images in `x` and classes in `y`, decoded by the shard's header.
    A sample without `i` gets its place as the index.

    Args:
        data: the file's bytes.
        path: its name in messages.

    Raises:
        ValueError: the file is not such a shard, or is truncated.
    """
    try:
        (samples,) = struct.unpack_from("<I", data)
        offsets = np.frombuffer(data, "<u4", samples + 1, offset=4).tolist()
        header = json.loads(data[4 + 4 * len(offsets) : offsets[0]])
        columns = {name: number for number, name in enumerate(header["column_names"])}
        encodings, images, labels = header["column_encodings"], columns["x"], columns["y"]
        for place, start in enumerate(offsets[:-1]):
            cells = [data[begin:end] for begin, end in column_spans(data, header["column_sizes"], start)]
            index = int.from_bytes(cells[columns["i"]], "little", signed=True) if "i" in columns else place
            yield Record(index, cells[images], decode_label(encodings[labels], cells[labels]))
    except (struct.error, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not an MDS shard with images in x and classes in y ({error!r})") from None


def decode_shard(data: bytes, path: str) -> Iterator[Record]:
    """The samples of a shard written by `ShardEncoder`, in order.

    Args:
        data: the file's bytes.
        path: its name in messages.

    Raises:
        ValueError: the file is not such a shard, or is truncated.
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
    for place, (start, end) in enumerate(bounds):
        if not 4 + offsets.nbytes <= start <= end - _FIXED_BYTES_PER_SAMPLE:
            raise ValueError(f"{path}: sample {place} lies from byte {start} to {end}, which cannot be")
        index, image, label = column_spans(data, _LAYOUT["column_sizes"], start)
        if label[1] != end:
            raise ValueError(f"{path}: sample {place} says {image[1] - image[0]} bytes, in a place for {end - start}")
        yield Record(
            int.from_bytes(data[slice(*index)], "little", signed=True),
            data[slice(*image)],
            int.from_bytes(data[slice(*label)], "little", signed=True),
        )


def read_sample(shard: Path, place: int) -> bytes:
    """The bytes of one sample of a shard file, at the cost of two reads.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read, or ends within the sample.
    """
    descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, end = struct.unpack("<II", os.pread(descriptor, 8, 4 + 4 * place))
        data = os.pread(descriptor, end - start, start) if start < end else b""
    except struct.error:
        data, start, end = b"", 0, 1
    finally:
        os.close(descriptor)
    if len(data) != end - start:
        raise OSError(errno.EIO, f"The shard ends within sample {place}", str(shard))
    return data
