"""A split's shards on a disk of this machine: fetched to a cache when needed, or read in place.

Readers use one class for both cases. Without a remote, a `ShardCache` is the dataset's own folder: nothing is fetched,
locked or removed. With one, it is a cache folder of its own:

    ROOT/<fingerprint>/<split>/index.json              as in the dataset
    ROOT/<fingerprint>/<split>/shard.00000.mds         complete: verified under a temporary name, then renamed
    ROOT/<fingerprint>/<split>/.held/shard.00000.mds   locked while its shard is fetched; records what was verified

Because of the fingerprint in the path, a second run finds what the first one fetched, and another dataset does not.
There is no server and no state in memory: all processes on the machine coordinate through file locks, which the kernel
releases when a process ends in any way. Streaming uses a table in shared memory instead; if the process that fetches a
shard is killed or fails, all others wait forever.
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
from imagenet_mds.storage.retry import SHARD_DOWNLOADS

_LOCK_FOLDER = ".held"
_PIECE_BYTES = 16 << 20
_ROOM = "room"
"""Name of the lock that is held while shards are evicted."""

_ROOM_SECONDS = 0.05
"""Interval of looking for room while other processes download."""

_FEWEST_SHARDS = 8
"""Number of shards that a limit must hold. With fewer, shards would be fetched again before they are used up."""


@dataclass(frozen=True)
class ShardCache:
    """A split's folder on this machine.

    Attributes:
        folder: the folder with the shards.
        remote: where missing shards are fetched from. None for a dataset that is read in place.
        limit_bytes: maximum size of the fetched shards; others are evicted to make room. None for no limit.
    """

    folder: Path
    remote: Readable | None = None
    limit_bytes: int | None = None

    def path(self, basename: str) -> Path:
        """Return where a shard is or will be."""
        return self.folder / (basename if self.remote is None else _flat(basename))

    def prepare(self, shards: Sequence[ShardInfo]) -> None:
        """Create the cache folder with the index, which readers expect in it. Does nothing for a dataset read in place.

        Args:
            shards: the shards that will be read.

        Raises:
            UserError: the limit or the disk is too small.
            WorldError: the folder cannot be written.
            OSError: the remote's index cannot be read.
        """
        if self.remote is None:
            return
        largest = max(shard.size_bytes for shard in shards)
        if self.limit_bytes is not None and self.limit_bytes < _FEWEST_SHARDS * largest:
            raise UserError(
                f"--cache-limit of {self.limit_bytes:,} bytes: allow for at least {_FEWEST_SHARDS} shards, "
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
                f"pass --cache FOLDER on a larger disk, or a smaller --cache-limit"
            )

    def fetch(self, shard: ShardInfo, *, wait: bool = True, protect: Callable[[], Set[str]] = frozenset) -> bool:
        """Make sure that a shard is on this machine.

        Args:
            shard: the shard as the index describes it.
            wait: wait for another process that is fetching it, and for room.
            protect: returns the names of shards that are in use, to be evicted last.

        Returns:
            True, or without `wait` False if another process is fetching the shard or there is no room yet.

        Raises:
            WorldError: the shard is missing, broken, or cannot be fetched or written.
        """
        path = self.path(shard.basename)
        if path.exists():
            return True
        if self.remote is None:
            raise WorldError(
                f"{path} is missing: `imagenet-mds verify {self.folder.parent} --repair SOURCE` rebuilds it"
            )
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
                    self._temporary(shard).unlink(missing_ok=True)  # after an error its room is free again
                write_stamp(lock, path)
        return True

    def _lock(self, basename: str, *, wait: bool) -> AbstractContextManager[int | None]:
        """Lock a shard against every other process and thread; give None if it is locked and `wait` is False."""
        return locked_file(self.folder / _LOCK_FOLDER / _flat(basename), wait=wait)

    def _download(self, remote: Readable, shard: ShardInfo) -> None:
        temporary = self._temporary(shard)
        for _ in range(SHARD_DOWNLOADS):
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
                # Before the rename: after a power cut, the name could otherwise stand for a file that ends in zeros.
                os.fsync(file.fileno())
            if at == shard.size_bytes and shard.xxh64 in ("", digest.hexdigest()):
                temporary.replace(self.path(shard.basename))
                return
        raise WorldError(
            f"{remote.location}/{shard.basename} is broken: it has {at:,} bytes with xxh64 {digest.hexdigest()}, and "
            f"the dataset says {shard.size_bytes:,} and {shard.xxh64 or 'nothing'}. Repair it with "
            f"`imagenet-mds verify {remote.parent.location} --repair SOURCE`, where SOURCE is what the dataset was "
            f"converted from"
        )

    def _take_room(self, shard: ShardInfo, protected: Set[str]) -> bool:
        """Evict shards until another one fits, and reserve its room by a temporary file of its full length.

        Shards are evicted at random. An epoch uses each shard once, in an order of its own, so the least recently used
        shard is likely to be needed soonest; after random eviction some of the next epoch's shards are still there.

        Returns:
            Whether there is room now. If not, the downloads of other processes take it.
        """
        with self._lock(_ROOM, wait=True):
            if self.limit_bytes is not None:
                self._remove_stale_partials()
                here, coming = self._sizes("[!.]*.mds"), self._sizes(".*.mds.tmp")
                excess = sum(here.values()) + sum(coming.values()) + shard.size_bytes - self.limit_bytes
                if excess > sum(here.values()):
                    return False
                lots = random.SystemRandom()  # leaves the state of the training's generator alone
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
        """Return where a shard is downloaded to, by the holder of its lock."""
        return self.folder / f".{_flat(shard.basename)}.tmp"

    def _sizes(self, pattern: str) -> dict[Path, int]:
        """Return the files that match a pattern with their sizes, without those that other processes just removed."""
        sizes = {}
        for path in self.folder.glob(pattern):
            with contextlib.suppress(FileNotFoundError):
                sizes[path] = path.stat().st_size
        return sizes

    def missing(self, shards: Sequence[ShardInfo]) -> list[str]:
        """List the dataset once, and return which shards it lacks or has in another size, a text for each.

        Raises:
            OSError: it cannot be listed.
        """
        dataset = self.remote or LocalStorage(self.folder)
        sizes = {entry.name: entry.size_bytes for entry in dataset.walk()}
        return [
            f"{shard.basename} ({'missing' if shard.basename not in sizes else f'{sizes[shard.basename]:,} bytes'})"
            for shard in shards
            if sizes.get(shard.basename) != shard.size_bytes
        ]

    def drop_broken(
        self, shards: Sequence[ShardInfo], threads: int, on_shard: Callable[[ShardInfo], None] = lambda shard: None
    ) -> list[tuple[ShardInfo, str]]:
        """Remove fetched shards that are broken, so that they are fetched again.

        Shards whose files have not changed since they were verified are not read.

        Args:
            shards: the shards as the index describes them.
            threads: number of shards to hash at once.
            on_shard: called after each shard that was hashed.

        Returns:
            The removed shards, each with what was wrong.
        """
        assert self.remote is not None, "only shards that can be fetched again are removed"
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
    """Return a shard's name without folders. The names in a merged index have some: `00001/shard.00000.mds`."""
    return basename.replace("/", "-")


def _pieces(remote: Readable, basename: str) -> Iterator[bytes | memoryview]:
    try:
        yield from remote.pieces(basename, _PIECE_BYTES)
    except OSError as error:
        raise WorldError(
            f"{remote.location}/{basename} cannot be fetched: {error.strerror or error}. Run the same command again"
        ) from error
