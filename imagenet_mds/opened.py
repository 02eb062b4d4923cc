"""A dataset opened for reading samples from a disk of this machine: in its place, or through a cache."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.cache import SplitFiles
from imagenet_mds.contents import Contents, read_contents
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.mds import ShardInfo
from imagenet_mds.shards import faulty_shards
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.unpacked import unpacked


def default_cache() -> Path:
    """Where shards are kept that no --cache says a place for, as the XDG base directory specification has it."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imagenet-mds"


@dataclass(frozen=True)
class OpenSplit:
    """A split: what it holds, where it lies, and its files on this machine."""

    contents: Contents
    storage: Storage
    files: SplitFiles

    @property
    def note(self) -> str | None:
        """What a person should know before it is used; None if it is as it should be."""
        if self.contents.classes is not None:
            return None
        unpacked = f"; its shards are compressed, and unpacked into {self.files.folder}" if self.contents.packed else ""
        return (
            f"{self.storage.parent.location} has no manifest: it is known by its index alone, its classes are numbers, "
            f"and it has no subsets{unpacked}"
        )

    def begin(self, shards: Sequence[ShardInfo]) -> None:
        """As `begin`, for this split alone."""
        begin([(self, shards)])

    def _missing(self, shards: Sequence[ShardInfo]) -> str | None:
        """The shards that cannot be fetched, all of them named; None where none is missing."""
        try:
            missing = self.files.missing(shards)
        except OSError as error:
            raise WorldError(f"{self.storage.location} cannot be listed: {error.strerror or error}") from error
        if not missing:
            return None
        return (
            f"{self.storage.location}: {len(missing):,} of {len(shards):,} shards are missing or not whole: "
            f"{', '.join(missing)}"
        )

    @property
    def mend(self) -> str:
        """What to do where shards are missing or broken."""
        if self.contents.classes is None:
            return "Copy them again from where they were written: without a manifest they cannot be made anew"
        return (
            f"Make them anew with `imagenet-mds verify {self.storage.parent.location} --repair SOURCE`, SOURCE being "
            f"what it was converted from"
        )

    def crowded(self, shards: Sequence[ShardInfo], samples_at_once: int) -> str | None:
        """What to say where the cache's limit has no room for the shards that a shuffled epoch reads from at once.

        Args:
            shards: that are read.
            samples_at_once: among which an epoch draws, `data.order.shuffle_block_size`.
        """
        if self.files.limit_bytes is None:
            return None
        size_bytes, samples = sum(shard.size_bytes for shard in shards), sum(shard.samples for shard in shards)
        # A block lies across the shards at both of its ends.
        largest = max(shard.size_bytes for shard in shards)
        needed = min(size_bytes, size_bytes * samples_at_once // samples + 2 * largest)
        if self.files.limit_bytes >= needed:
            return None
        return (
            f"--cache-limit has room for {self.files.limit_bytes / 1e9:,.2f} GB of {self.contents.split}, and an epoch "
            f"reads from {needed / 1e9:,.2f} GB at once: shards are fetched several times. Give that much, or a "
            f"smaller data.order.shuffle_block_size"
        )

    def verify(
        self, shards: Sequence[ShardInfo], threads: int, on_shard: Callable[[ShardInfo], None] = lambda shard: None
    ) -> list[str]:
        """Compare shards with the index, by size and hash, those on this machine.

        Returns:
            A line for each fetched shard that was broken; it is removed, and will be fetched again.

        Raises:
            WorldError: a shard is broken that cannot be fetched again; it is named, with the command that repairs it.
        """
        if self.files.remote is not None:
            return [
                f"{self.files.path(shard.basename)} is fetched again: {reason}"
                for shard, reason in self.files.drop_broken(shards, threads, on_shard)
            ]
        faults = faulty_shards(self.storage, shards, threads, on_shard)
        if faults:
            shard, reason = faults[0]
            more = f" ({len(faults) - 1} more are broken)" if len(faults) > 1 else ""
            raise WorldError(f"{self.files.path(shard.basename)} is broken: {reason}{more}. {self.mend}")
        return []


def begin(parts: Sequence[tuple[OpenSplit, Sequence[ShardInfo]]]) -> None:
    """Make sure that shards can be read: those that are not on this machine are all where they are fetched from.

    Raises:
        UserError: the limit on the cache is too small.
        WorldError: shards are missing where the dataset lies, all of them named; the disk or the line fails.
    """
    fetched = [(split, shards) for split, shards in parts if split.files.remote is not None]
    for split, shards in fetched:
        split.files.begin(shards)
    missing = [sentence for split, shards in fetched if (sentence := split._missing(shards))]
    if missing:
        raise WorldError(f"{'; '.join(missing)}. {fetched[0][0].mend}")


@dataclass(frozen=True)
class OpenDataset:
    """A dataset where the user says that it lies, and the folder that its shards are fetched to; None where they are
    read in their place, if they can be."""

    storage: Storage
    cache: Path | None = None
    limit_bytes: int | None = None

    @classmethod
    def at(cls, location: str, cache: Path | None = None, limit_bytes: int | None = None) -> "OpenDataset":
        """Open what a user typed. Nothing is read yet.

        Raises:
            UserError: no address of a dataset, or a limit on what is no cache.
        """
        storage = open_storage(location)
        if isinstance(storage, LocalStorage) and cache is None:
            if limit_bytes is not None:
                raise UserError(
                    f"--cache-limit: {location} is read in its place, and the only copy is never removed: "
                    f"give --cache FOLDER too, or leave it out"
                )
            return cls(storage)
        cache = default_cache() if cache is None else cache
        if isinstance(storage, LocalStorage) and cache.resolve().is_relative_to(storage.root.resolve()):
            raise UserError(f"--cache {cache} lies inside the dataset {location}: give a folder outside of it")
        if cache.exists() and not cache.is_dir():
            raise UserError(f"--cache {cache} is a file: give a folder")
        return cls(storage, cache, limit_bytes)

    @property
    def location(self) -> str:
        """The location as a user types it."""
        return self.storage.location

    def split(self, name: str) -> OpenSplit:
        """One split; nothing is written yet, see `SplitFiles.begin`.

        Raises:
            UserError: there is none, or none that can be read.
        """
        storage = self.storage.child(name)
        contents = read_contents(storage)
        if self.cache is None and isinstance(storage, LocalStorage) and not contents.packed:
            return OpenSplit(contents, storage, SplitFiles(storage.root))
        folder = (self.cache or default_cache()) / contents.fingerprint / name
        return OpenSplit(contents, storage, SplitFiles(folder, unpacked(storage, contents), self.limit_bytes))
