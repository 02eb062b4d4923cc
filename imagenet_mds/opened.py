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
from imagenet_mds.storage import LocalStorage, Storage, open_storage
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
        """Make sure that shards can be read: those that are not on this machine are all where they are fetched from.

        Raises:
            UserError: the limit on the cache is too small.
            WorldError: shards are missing where the dataset lies, all of them named; the disk or the line fails.
        """
        if self.files.remote is None:
            return
        self.files.begin(shards)
        try:
            missing = self.files.missing(shards)
        except OSError as error:
            raise WorldError(f"{self.storage.location} cannot be listed: {error.strerror or error}") from error
        if missing:
            raise WorldError(
                f"{self.storage.location}: {len(missing):,} of {len(shards):,} shards are missing or not whole: "
                f"{', '.join(missing)}. Make them with `imagenet-mds verify {self.storage.parent.location} "
                f"--repair SOURCE`, SOURCE being what it was converted from"
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
            raise WorldError(
                f"{self.files.path(shard.basename)} is broken: {reason}{more}. Mend it with "
                f"`imagenet-mds verify {self.storage.parent.location} --repair SOURCE`, SOURCE being what it was "
                f"converted from"
            )
        return []


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
