"""Compressed shards, read as if they were not compressed.

Stock tools can write them. This program does not, because compressing images again gains nothing.
"""

import errno
import importlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from imagenet_mds.dataset.mds import INDEX_BASENAME
from imagenet_mds.dataset.split_info import SplitInfo
from imagenet_mds.storage.base import Entry, Readable, Storage

_MODULES = {"br": "brotli", "bz2": "bz2", "gz": "gzip", "snappy": "snappy", "zstd": "zstd"}
"""The module that decompresses each of Streaming's algorithms. Streaming depends on those that Python lacks."""


@dataclass(frozen=True)
class _Packed:
    """A compressed shard: its file, the size of the file and of the shard in it, the algorithm and level, `zstd:3`."""

    basename: str
    packed_bytes: int
    size_bytes: int
    algorithm: str


@dataclass(frozen=True)
class UnpackedSplit:
    """A view of the split `packed`: its shards decompressed, under their names without the compression suffix, and an
    index to match.

    A shard that is stored decompressed instead, as Streaming leaves those it has read, is read directly.
    """

    packed: Storage

    @cached_property
    def _index(self) -> dict[str, Any]:
        index: dict[str, Any] = json.loads(self.packed.read(INDEX_BASENAME))
        return index

    @cached_property
    def _shards(self) -> dict[str, _Packed]:
        return {
            entry["raw_data"]["basename"]: _Packed(
                entry["zip_data"]["basename"],
                entry["zip_data"]["bytes"],
                entry["raw_data"]["bytes"],
                entry["compression"],
            )
            for entry in self._index["shards"]
            if entry["zip_data"]
        }

    @property
    def location(self) -> str:
        """The location as a user types it."""
        return self.packed.location

    @property
    def parent(self) -> Storage:
        """The storage that contains this one."""
        return self.packed.parent

    def read(self, name: str) -> bytes:
        """Read a whole file, decompressed if it is a shard.

        Raises:
            FileNotFoundError: there is no such file.
            OSError: it cannot be read or decompressed.
        """
        if name == INDEX_BASENAME:
            plain = [entry | {"compression": None, "zip_data": None} for entry in self._index["shards"]]
            return json.dumps(self._index | {"shards": plain}).encode("utf-8")
        if (shard := self._shards.get(name)) is None:
            return self.packed.read(name)
        try:
            data = self.packed.read(shard.basename)
        except FileNotFoundError:
            return self.packed.read(name)
        try:
            algorithm = importlib.import_module(_MODULES[shard.algorithm.partition(":")[0]])
            unpacked: bytes = algorithm.decompress(data)
        except Exception as error:  # each algorithm has its own errors
            place = f"{self.location}/{shard.basename}"
            raise OSError(errno.EIO, f"it does not unpack as {shard.algorithm} ({error})", place) from None
        return unpacked

    def pieces(self, name: str, piece_bytes: int) -> Iterator[bytes | memoryview]:
        """Yield a whole file in pieces of at most `piece_bytes`.

        Raises:
            OSError: as `read`.
        """
        data = memoryview(self.read(name))
        for at in range(0, len(data), piece_bytes):
            yield data[at : at + piece_bytes]

    def walk(self) -> Iterator[Entry]:
        """Iterate over every file. A compressed shard of the right size counts as the shard in it.

        Raises:
            OSError: the storage cannot be listed.
        """
        sizes = {entry.name: entry.size_bytes for entry in self.packed.walk()}
        unpacked = {
            name: shard.size_bytes
            for name, shard in self._shards.items()
            if sizes.get(shard.basename) == shard.packed_bytes
        }
        yield from (Entry(*item) for item in (sizes | unpacked).items())


def unpacked(split: Storage, info: SplitInfo) -> Readable:
    """Return the split as readers need it: itself, or a view of it with its shards decompressed."""
    return UnpackedSplit(split) if info.packed else split
