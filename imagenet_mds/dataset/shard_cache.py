"""A dataset's files on a disk of this machine: where they are, or where they are fetched to when they are needed.

    ROOT/<fingerprint>/<split>/index.json              as the dataset has it
    ROOT/<fingerprint>/<split>/shard.00000.mds         there means whole: verified under another name, then renamed
    ROOT/<fingerprint>/<split>/.held/shard.00000.mds   locked while its shard is fetched; holds what was verified

The path carries the fingerprint, so a second run finds what a first one fetched, and another dataset never does. There
is no server and no state in memory: the processes of a run, and other runs on the machine, meet at the locks, which the
kernel lets go when a process ends, however it ends. The alternative, the library's, is a table in shared memory: where
the one that fetches is killed or meets an error, all others wait for ever.
"""

import contextlib
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import xxhash

from imagenet_mds.dataset.integrity import faulty_shards
from imagenet_mds.dataset.mds import INDEX_BASENAME, ShardInfo
from imagenet_mds.dataset.verified import file_state, read_stamp, write_stamp
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.locks import locked_file
from imagenet_mds.storage.atomic import write_atomic
from imagenet_mds.storage.base import Readable, writing_to
from imagenet_mds.storage.local import LocalStorage

_LOCK_FOLDER = ".held"
_PIECE_BYTES = 16 << 20
_ATTEMPTS = 3
"""How often a shard is fetched that is not what the index says, before it is given up. Lost connections are the
storage's to mend."""

_ROOM = "room"
_ROOM_SECONDS = 0.05

_FEWEST_SHARDS = 8
"""A limit must have room for so many: fewer would be fetched again before they are used up."""


@dataclass(frozen=True)
class ShardCache:
    """A split's folder on this machine; with `remote`, shards that are not in it are fetched from there, and where
    `limit_bytes` is given others make room for them."""

    folder: Path
    remote: Readable | None = None
    limit_bytes: int | None = None

    def path(self, basename: str) -> Path:
        """Where a shard is, or will be."""
        return self.folder / (basename if self.remote is None else _flat(basename))

    def prepare(self, shards: Sequence[ShardInfo]) -> None:
        """Make the folder ready for readers, who want the index in it.

        Raises:
            UserError: the limit, or the disk, is too small.
            WorldError: the disk refuses.
        """
        if self.remote is None:
            return
        largest = max(shard.size_bytes for shard in shards)
        if self.limit_bytes is not None and self.limit_bytes < _FEWEST_SHARDS * largest:
            raise UserError(
                f"--cache-limit of {self.limit_bytes:,} bytes: give room for {_FEWEST_SHARDS} shards at least, "
                f"{_FEWEST_SHARDS * largest:,} bytes"
            )
        self._refuse_small_disk(shards)
        index = self.remote.read(INDEX_BASENAME)
        with writing_to(LocalStorage(self.folder)):
            (self.folder / _LOCK_FOLDER).mkdir(parents=True, exist_ok=True)
            self._remove_stale_partials()
            write_atomic(self.path(INDEX_BASENAME), index)

    def _remove_stale_partials(self) -> None:
        """Remove partial downloads that no process is writing."""
        for path in self.folder.glob(".*.mds.tmp"):
            with self._lock(path.name[1:].removesuffix(".tmp"), wait=False) as lock:
                if lock is not None:
                    path.unlink(missing_ok=True)

    def _refuse_small_disk(self, shards: Sequence[ShardInfo]) -> None:
        here = self._sizes("[!.]*.mds")
        needed = sum(shard.size_bytes for shard in shards if self.path(shard.basename) not in here)
        if self.limit_bytes is not None:
            needed = min(needed, self.limit_bytes - sum(here.values()))
        free = LocalStorage(self.folder).free_bytes()
        if needed > free:
            raise UserError(
                f"{self.folder} would take {needed / 1e9:,.1f} GB more and its disk has {free / 1e9:,.1f} GB free: "
                f"give --cache FOLDER on a larger disk, or a smaller --cache-limit"
            )

    def fetch(self, shard: ShardInfo, *, wait: bool = True, protect: Callable[[], Set[str]] = frozenset) -> bool:
        """Make sure that a shard is here.

        Args:
            shard: what the index says of it.
            wait: for another process that is fetching it.
            protect: the names of shards that are in use, to be removed last where room is made.

        Returns:
            Whether it is; False only where another process is fetching it and is not waited for.

        Raises:
            WorldError: it cannot be had.
        """
        path = self.path(shard.basename)
        if path.exists():
            return True
        if self.remote is None:
            raise WorldError(f"{path} is missing: `imagenet-mds verify {self.folder.parent} --repair SOURCE` makes it")
        with self._lock(shard.basename, wait=wait) as lock:
            if lock is None:
                return False
            if path.exists():
                return True
            with writing_to(LocalStorage(self.folder)):
                while not self._take_room(shard, protect()):
                    if not wait:
                        return False
                    time.sleep(_ROOM_SECONDS)
                try:
                    self._download(self.remote, shard)
                finally:
                    self._temporary(shard).unlink(missing_ok=True)  # its room is free again where that went wrong
                write_stamp(lock, path)
        return True

    def _lock(self, basename: str, *, wait: bool) -> AbstractContextManager[int | None]:
        """Lock a shard against every other process and thread; gives None where another holds it."""
        return locked_file(self.folder / _LOCK_FOLDER / _flat(basename), wait=wait)

    def _download(self, remote: Readable, shard: ShardInfo) -> None:
        temporary = self._temporary(shard)
        for _ in range(_ATTEMPTS):
            digest, at = xxhash.xxh64(), 0
            with open(temporary, "rb+") as file:
                for piece in _pieces(remote, shard.basename):
                    digest.update(piece)
                    file.write(piece)
                    at += len(piece)
                    if at > shard.size_bytes:
                        break
                file.truncate(at)
                file.flush()
                # Before it has its name: after a power cut that would stand for a file that ends in zeros.
                os.fsync(file.fileno())
            if at == shard.size_bytes and shard.xxh64 in ("", digest.hexdigest()):
                temporary.replace(self.path(shard.basename))
                return
        raise WorldError(
            f"{remote.location}/{shard.basename} is broken: it has {at:,} bytes with xxh64 {digest.hexdigest()}, and "
            f"the dataset says {shard.size_bytes:,} and {shard.xxh64 or 'nothing'}. Mend it with `imagenet-mds verify "
            f"{remote.parent.location} --repair SOURCE`, SOURCE being what it was converted from"
        )

    def _take_room(self, shard: ShardInfo, protected: Set[str]) -> bool:
        """Remove shards until another fits, and begin its file in its whole length, so that no one else takes the room.

        Any of them, by lot: an epoch uses each shard once in an order of its own, so that the one unused for longest is
        the one needed soonest, and by lot some of the next epoch's are still there. Each is a copy, and is fetched
        again when it is needed.

        Returns:
            Whether it fits now; if not, the room is taken by what others are fetching.
        """
        with self._lock(_ROOM, wait=True):
            if self.limit_bytes is not None:
                self._remove_stale_partials()
                here, coming = self._sizes("[!.]*.mds"), self._sizes(".*.mds.tmp")
                excess = sum(here.values()) + sum(coming.values()) + shard.size_bytes - self.limit_bytes
                if excess > sum(here.values()):
                    return False
                lots = random.SystemRandom()  # the training's generator must not notice
                protected_names = {_flat(basename) for basename in protected}
                for path in sorted(here, key=lambda path: (path.name in protected_names, lots.random())):
                    if excess <= 0:
                        break
                    path.unlink(missing_ok=True)
                    excess -= here[path]
            with open(self._temporary(shard), "wb") as file:
                file.truncate(shard.size_bytes)
        return True

    def _temporary(self, shard: ShardInfo) -> Path:
        """Where a shard is written; one at a time does: who holds it."""
        return self.folder / f".{_flat(shard.basename)}.tmp"

    def _sizes(self, pattern: str) -> dict[Path, int]:
        """The files of such names and their bytes; other processes may rename or remove some meanwhile."""
        sizes = {}
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def missing(self, shards: Sequence[ShardInfo]) -> list[str]:
        """Which shards the dataset does not have where it lies, or has in another size; a line each, by one listing.

        Raises:
            OSError: it cannot be listed.
        """
        if self.remote is None:
            return []
        sizes = {entry.name: entry.size_bytes for entry in self.remote.walk()}
        return [
            f"{shard.basename} ({'missing' if shard.basename not in sizes else f'{sizes[shard.basename]:,} bytes'})"
            for shard in shards
            if sizes.get(shard.basename) != shard.size_bytes
        ]

    def drop_broken(
        self, shards: Sequence[ShardInfo], threads: int, on_shard: Callable[[ShardInfo], None] = lambda shard: None
    ) -> list[tuple[ShardInfo, str]]:
        """Remove fetched shards that are not what they were, so that they are fetched again. Those that nobody touched
        since they were verified are not read.

        Returns:
            The shards that were removed, each with what was wrong.
        """
        assert self.remote is not None, "only what can be fetched again is removed"
        held = self.folder / _LOCK_FOLDER
        here = {path.name for path in self.folder.glob("[!.]*.mds")}
        touched = [
            shard
            for shard in shards
            if (name := _flat(shard.basename)) in here and read_stamp(held / name) != file_state(self.folder / name)
        ]
        as_here = [replace(shard, basename=_flat(shard.basename)) for shard in touched]
        faults = faulty_shards(LocalStorage(self.folder), as_here, threads, on_shard)
        broken = {shard.basename for shard, _ in faults}
        for shard in as_here:
            with self._lock(shard.basename, wait=True) as descriptor:
                assert descriptor is not None
                if shard.basename in broken:
                    self.path(shard.basename).unlink(missing_ok=True)
                else:
                    write_stamp(descriptor, self.path(shard.basename))
        return faults


def _flat(basename: str) -> str:
    """A shard's name without the folders that it has in a merged index: `00001/shard.00000.mds`."""
    return basename.replace("/", "-")


def _pieces(remote: Readable, basename: str) -> Iterator[bytes | memoryview]:
    try:
        yield from remote.pieces(basename, _PIECE_BYTES)
    except OSError as error:
        raise WorldError(
            f"{remote.location}/{basename} cannot be fetched: {error.strerror or error}. Run the same command again"
        ) from error
