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
    "column_encodings": ["int", "jpeg", "int"],
    "column_names": ["i", "x", "y"],
    "column_sizes": [8, None, 8],
    "compression": None,
    "format": "mds",
    "hashes": ["xxh64"],
    "version": _VERSION,
}
_FIXED_BYTES_PER_SAMPLE = 4 + 8 + 8  # the length of x, then i and y


@dataclass(frozen=True)
class Record:
    """One stored sample: `index` in the sorted source, the `jpeg` file's bytes, the class number `label`."""

    index: int
    jpeg: bytes
    label: int


@dataclass(frozen=True)
class ShardInfo:
    """What the index and the manifest say of a shard: file name, size in bytes, xxh64 in hexadecimal, samples."""

    basename: str
    size_bytes: int
    xxh64: str
    samples: int


def shard_basename(shard: int) -> str:
    """The file name of shard number `shard`, as the library numbers them."""
    return f"shard.{shard:05}.mds"


def encode_shard(records: Sequence[Record], size_limit_bytes: int) -> bytes:
    """The bytes of a shard file.

    Args:
        records: the samples, in order; none may be missing.
        size_limit_bytes: what the header says the limit was; readers do not use it.

    Raises:
        ValueError: the shard would reach 4 GiB, where its offsets end.
    """
    header = json.dumps(_LAYOUT | {"size_limit": size_limit_bytes}, sort_keys=True).encode("utf-8")
    lengths = np.array([len(record.jpeg) for record in records], np.int64)
    # offsets: (samples + 1), of each sample and of the end of the file
    offsets = np.concatenate([[0], np.cumsum(lengths + _FIXED_BYTES_PER_SAMPLE)])
    offsets += 4 + 4 * len(offsets) + len(header)
    if offsets[-1] >= 1 << 32:
        raise ValueError(f"a shard of {offsets[-1]} bytes cannot be addressed: MDS offsets end at 4 GiB")
    parts = [struct.pack("<I", len(records)), offsets.astype("<u4").tobytes(), header]
    for record in records:
        parts += (
            struct.pack("<Iq", len(record.jpeg), record.index),
            record.jpeg,
            struct.pack("<q", record.label),
        )
    return b"".join(parts)


def describe_shard(basename: str, data: bytes, samples: int) -> ShardInfo:
    """Hash and size of a shard's bytes."""
    return ShardInfo(basename, len(data), xxhash.xxh64(data).hexdigest(), samples)


def index_json(shards: Sequence[ShardInfo], size_limit_bytes: int) -> dict[str, Any]:
    """The `index.json` that makes a folder of shards a dataset for every reader of the library."""
    return {
        "version": _VERSION,
        "shards": [
            _LAYOUT
            | {
                "raw_data": {
                    "basename": shard.basename,
                    "bytes": shard.size_bytes,
                    "hashes": {"xxh64": shard.xxh64},
                },
                "samples": shard.samples,
                "size_limit": size_limit_bytes,
                "zip_data": None,
            }
            for shard in shards
        ],
    }


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
        jpeg = data[start + 12 : start + 12 + length]
        (label,) = struct.unpack_from("<q", data, start + 12 + length)
        yield Record(index, jpeg, label)
