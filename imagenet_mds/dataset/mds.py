"""The MDS shard format of Streaming, encoded and decoded without it.

A shard is `uint32 samples`, the `uint32 offset` of each sample and of the end (from the start of the file), a JSON
header, then the samples. A sample is the `uint32` byte lengths of its columns of variable size, then the columns in the
order of their names. Streaming's own writer (`streaming/base/format/mds/writer.py`, version 2) makes the same format,
but copies each column on the way and takes twice as long. A test checks that Streaming reads these shards.

The columns are those of StreamingImageNet: `i` (int64: the index in the sorted source), `x` (the JPEG file's bytes) and
`y` (int64: the label). `x_half` is beside them in a dataset with half-size copies; stock readers return it as bytes.
"""

import errno
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import numpy as np
import pydantic.dataclasses
import xxhash
from numpy.typing import NDArray
from pydantic import ConfigDict, Field

INDEX_BASENAME = "index.json"

Count = Annotated[int, Field(ge=0)]

_VERSION = 2
IMAGE_COLUMN, HALF_COLUMN, LABEL_COLUMN = "x", "x_half", "y"


@dataclass(frozen=True)
class Layout:
    """How the samples of a shard are laid out.

    `size_limit_bytes` is the shard size limit recorded in the header, which readers do not use. `raw` says that images
    are raw samples instead of JPEG files, `half` that half-size copies are beside them.
    """

    size_limit_bytes: int
    raw: bool = False
    half: bool = False

    def header(self) -> dict[str, Any]:
        """The JSON header of a shard, and what the index repeats of it."""
        columns = {"i": ("int", 8), IMAGE_COLUMN: ("pil" if self.raw else "jpeg", None)}
        if self.half:
            columns[HALF_COLUMN] = ("bytes", None)
        columns[LABEL_COLUMN] = ("int", 8)
        return {
            "column_encodings": [encoding for encoding, _ in columns.values()],
            "column_names": list(columns),
            "column_sizes": [size for _, size in columns.values()],
            "compression": None,
            "format": "mds",
            "hashes": ["xxh64"],
            "size_limit": self.size_limit_bytes,
            "version": _VERSION,
        }

    @property
    def fixed_bytes(self) -> int:
        """Bytes of a sample beside its image and copy: their lengths, `i` and `y`."""
        return (8 if self.half else 4) + 8 + 8


_OFFSETS_END = 1 << 32


@dataclass(frozen=True)
class Record:
    """One stored sample: its `index` in the sorted source, its `image` (a JPEG file's bytes, or a raw sample, see
    `raw_pixels.py`), its class as the number `label`, and its half-size copy `half` (a JPEG, empty if it has none)."""

    index: int
    image: bytes
    label: int
    half: bytes = b""


@pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid"))
class ShardInfo:
    """What the index and the manifest record about a shard file. `xxh64` is hexadecimal, and empty if the writer of the
    index recorded no hash."""

    basename: str
    size_bytes: Count
    xxh64: str
    samples: Count


def shard_basename(shard: int) -> str:
    """Return the file name of a shard by its number, as Streaming numbers them."""
    return f"shard.{shard:05}.mds"


class ShardEncoder:
    """Encodes a shard file in one buffer, sample by sample, so that the first samples can be written to the disk while
    the others are read.

    The table of offsets is before the samples, and its length depends on their number. So the number is announced; if
    fewer samples come, they are moved at the end.

    Args:
        most_samples: upper bound of the number of samples.
        layout: the layout of the samples.
        buffer: memory to work in; a larger one is allocated if it does not suffice. Reusing one for all shards of a
            process spares the kernel clearing fresh pages, which costs as much as copying the images.
        images_bytes: expected size of all images and copies, to allocate the memory at once.
    """

    def __init__(
        self, most_samples: int, layout: Layout, buffer: bytearray | None = None, *, images_bytes: int = 0
    ) -> None:
        self._layout = layout
        self._header = json.dumps(layout.header(), sort_keys=True).encode("utf-8")
        self._start = self._end = self._head_bytes(most_samples)
        likely = self._start + images_bytes + most_samples * layout.fixed_bytes
        self._buffer = buffer if buffer is not None and len(buffer) >= likely else bytearray(likely)
        self._ends: list[int] = []

    def _head_bytes(self, samples: int) -> int:
        return 4 + 4 * (samples + 1) + len(self._header)

    @property
    def samples(self) -> int:
        """Number of samples added so far."""
        return len(self._ends)

    @property
    def filled(self) -> tuple[int, int]:
        """Start and end of the added samples in the buffer, and in the file if as many come as announced."""
        return self._start, self._end

    def add(self, record: Record) -> None:
        """Add a sample.

        Raises:
            ValueError: the shard would reach 4 GiB, the limit of its offsets.
        """
        parts = [struct.pack("<I", len(record.image))]
        if self._layout.half:
            parts.append(struct.pack("<I", len(record.half)))
        parts += [struct.pack("<q", record.index), record.image]
        if self._layout.half:
            parts.append(record.half)
        parts.append(struct.pack("<q", record.label))
        at, end = self._end, self._end + sum(map(len, parts))
        if end >= _OFFSETS_END:
            raise ValueError(f"a shard of {end:,} bytes cannot be addressed: MDS offsets end at {_OFFSETS_END:,}")
        if end > len(self._buffer):
            # A new buffer, because views of the old one may be on their way to the disk.
            longer = bytearray(max(end, len(self._buffer) * 5 // 4))
            longer[:at] = memoryview(self._buffer)[:at]
            self._buffer = longer
        for part in parts:
            self._buffer[at : at + len(part)] = part
            at += len(part)
        self._end = end
        self._ends.append(end)

    def view(self, start: int, end: int) -> memoryview:
        """Return a part of the buffer. It does not change until `finish`, which moves it if fewer samples came."""
        return memoryview(self._buffer)[start:end]

    def finish(self) -> memoryview:
        """Return the whole file as a view of the buffer, which must not be reused before the view is released."""
        head_bytes = self._head_bytes(self.samples)
        moved = self._start - head_bytes
        # offsets: (samples + 1,), one of each sample and one of the end of the file
        offsets = np.array([self._start, *self._ends], np.int64) - moved
        if moved:
            self._buffer[head_bytes : self._end - moved] = self._buffer[self._start : self._end]
        head = struct.pack("<I", self.samples) + offsets.astype("<u4").tobytes() + self._header
        self._buffer[:head_bytes] = head
        return memoryview(self._buffer)[: int(offsets[-1])]


def describe_shard(basename: str, data: bytes | memoryview, samples: int) -> ShardInfo:
    """Describe a shard by the size and hash of its bytes."""
    return ShardInfo(basename, len(data), xxhash.xxh64(data).hexdigest(), samples)


def index_json(shards: Sequence[ShardInfo], layout: Layout) -> dict[str, Any]:
    """Return the content of `index.json`, which makes a folder of shards a dataset for every Streaming reader."""
    return {
        "version": _VERSION,
        "shards": [
            layout.header()
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


def column_spans(
    data: bytes | memoryview, column_sizes: Sequence[int | None], start: int = 0, end: int | None = None
) -> list[tuple[int, int]]:
    """Locate the columns of a sample.

    Args:
        data: bytes that contain the sample.
        column_sizes: the size of each column in bytes, None if it varies; `column_sizes` of a shard's header.
        start: offset of the sample in `data`.
        end: offset of its end in `data`; the end of `data` if not given.

    Returns:
        (start, end) of each column in `data`.

    Raises:
        ValueError: the columns do not fill the sample exactly.
    """
    variable = column_sizes.count(None)
    sample_end = len(data) if end is None else end
    at = start + 4 * variable
    if at > sample_end:
        raise ValueError(f"{sample_end - start} bytes cannot hold the lengths of its columns")
    lengths = iter(struct.unpack_from(f"<{variable}I", data, start))
    spans = []
    for size in column_sizes:
        column_end = at + (next(lengths) if size is None else size)
        spans.append((at, column_end))
        at = column_end
    if at != sample_end:
        raise ValueError(f"its columns take {at - start} bytes, in a place for {sample_end - start}")
    return spans


def sample_offsets(data: bytes, path: str) -> NDArray[np.uint32]:
    """The offset of each sample and of the end, (samples + 1,).

    Raises:
        ValueError: the file is no shard, or does not end where it says.
    """
    if len(data) < 8:
        raise ValueError(f"{path} is not an MDS shard: {len(data)} bytes")
    (samples,) = struct.unpack_from("<I", data)
    if len(data) < 4 + 4 * (samples + 1):
        raise ValueError(f"{path} is not an MDS shard: its table of {samples} samples is cut short")
    offsets = np.frombuffer(data, "<u4", samples + 1, offset=4)
    if offsets[-1] != len(data):
        raise ValueError(f"{path} should end at byte {offsets[-1]} and ends at {len(data)}")
    return offsets


def decode_shard(data: bytes, path: str) -> Iterator[Record]:
    """Yield the samples of a shard written by `ShardEncoder`, in order.

    Args:
        data: the file's bytes.
        path: the file's name in messages.

    Raises:
        ValueError: the file is not such a shard, or is truncated.
    """
    offsets = sample_offsets(data, path)
    try:
        header = json.loads(data[4 + offsets.nbytes : int(offsets[0])])
        names = header["column_names"]
        layout = Layout(0, half=HALF_COLUMN in names)
        if names != layout.header()["column_names"]:
            raise ValueError(f"its columns are {', '.join(map(str, names))}")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} has no header of a shard of ours ({error!r})") from None
    sizes = layout.header()["column_sizes"]
    for place, (start, end) in enumerate(pairwise(offsets.tolist())):
        if not 4 + offsets.nbytes <= start <= end - layout.fixed_bytes:
            raise ValueError(f"{path}: sample {place} lies from byte {start} to {end}, which is impossible")
        try:
            spans = column_spans(data, sizes, start, end)
        except ValueError as error:
            raise ValueError(f"{path}: sample {place} is damaged: {error}") from None
        cells = {name: data[slice(*span)] for name, span in zip(names, spans, strict=True)}
        yield Record(
            int.from_bytes(cells["i"], "little", signed=True),
            cells[IMAGE_COLUMN],
            int.from_bytes(cells[LABEL_COLUMN], "little", signed=True),
            cells.get(HALF_COLUMN, b""),
        )


def read_cells(shard: str, place: int, column_sizes: Sequence[int | None], wanted: Sequence[int]) -> list[bytes]:
    """Read some columns of one sample of a shard file, and no more.

    Args:
        shard: path of the file.
        place: index of the sample in the shard.
        column_sizes: as in `column_spans`.
        wanted: the columns to read, by their numbers.

    Returns:
        The cell of each of these columns.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: the file cannot be read, or ends within the sample.
        ValueError: the columns do not fill the sample exactly.
    """
    descriptor = os.open(shard, os.O_RDONLY | os.O_CLOEXEC)
    try:
        start, end = struct.unpack("<II", os.pread(descriptor, 8, 4 + 4 * place))
        lengths = os.pread(descriptor, 4 * column_sizes.count(None), start)
        spans = column_spans(lengths, column_sizes, 0, end - start)
        cells = []
        for cell_start, cell_end in (spans[column] for column in wanted):
            cells.append(cell := os.pread(descriptor, cell_end - cell_start, start + cell_start))
            if len(cell) != cell_end - cell_start:
                raise _cut_short(shard, place)
    except struct.error:
        raise _cut_short(shard, place) from None
    finally:
        os.close(descriptor)
    return cells


def _cut_short(shard: str, place: int) -> OSError:
    return OSError(errno.EIO, f"The shard ends within sample {place}", shard)
