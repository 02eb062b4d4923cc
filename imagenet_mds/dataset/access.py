"""Opening a dataset to read samples: in place on a disk of this machine, or through a cache of shards."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.dataset.cache_folder import default_cache
from imagenet_mds.dataset.decompress import unpacked
from imagenet_mds.dataset.integrity import faulty_shards
from imagenet_mds.dataset.manifest import Manifest, read_manifest
from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.dataset.split_info import SplitInfo, read_split_info
from imagenet_mds.dataset.verified import VerifiedFiles
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SPLITS


def splits_of(location: str) -> list[Storage]:
    """Return the splits of a dataset. If it has none, return the first of `SPLITS`, so that reading it says why.

    Raises:
        UserError: the location cannot be a dataset's.
    """
    root = open_storage(location)
    names = root.list_names()
    return [root.child(split) for split in SPLITS if split in names] or [root.child(SPLITS[0])]


def read_dataset(location: str) -> list[tuple[Storage, Manifest]]:
    """Return the splits of a dataset with their manifests.

    Raises:
        UserError: there is no split, or one is incomplete.
    """
    return [(split, read_manifest(split)) for split in splits_of(location)]


@dataclass(frozen=True)
class Split:
    """An open split: what it holds, where it is stored, and its shards on this machine."""

    info: SplitInfo
    storage: Storage
    shard_cache: ShardCache

    @property
    def warning(self) -> str | None:
        """What the user should know before using the split; None if there is nothing to say."""
        if self.info.classes is not None:
            return None
        where = f"; its compressed shards are unpacked into {self.shard_cache.folder}" if self.info.packed else ""
        return (
            f"{self.storage.parent.location} has no manifest: it is identified by its index alone, its classes are "
            f"numbers, and it has no subsets{where}"
        )

    @property
    def hint(self) -> str:
        """What to do about missing or broken shards."""
        if self.info.classes is None:
            return "Copy them again from where they came from: without a manifest they cannot be rebuilt"
        return (
            f"Rebuild them with `imagenet-mds verify {self.storage.parent.location} --repair SOURCE`, where SOURCE is "
            f"what the dataset was converted from"
        )

    def check_available(self, shards: Sequence[ShardInfo]) -> None:
        """Call `check_available` for this split alone.

        Raises:
            UserError, WorldError: see `check_available`.
        """
        check_available([(self, shards)])

    def missing(self, shards: Sequence[ShardInfo]) -> str | None:
        """Return a sentence that names every shard that cannot be fetched; None if there is none.

        Raises:
            WorldError: the storage cannot be listed.
        """
        try:
            missing = self.shard_cache.missing(shards)
        except OSError as error:
            raise WorldError(f"{self.storage.location} cannot be listed: {error.strerror or error}") from error
        if not missing:
            return None
        return (
            f"{self.storage.location}: {len(missing):,} of {len(shards):,} shards are missing or not whole: "
            f"{', '.join(missing)}"
        )

    def cache_too_small(self, shards: Sequence[ShardInfo], samples_at_once: int) -> str | None:
        """Return a warning if the cache limit cannot hold the shards that a shuffled epoch reads at once, else None.

        Args:
            shards: the shards that are read.
            samples_at_once: the samples among which an epoch shuffles, `data.order.shuffle_block_size`.
        """
        limit_bytes = self.shard_cache.limit_bytes
        if limit_bytes is None:
            return None
        size_bytes, samples = sum(shard.size_bytes for shard in shards), sum(shard.samples for shard in shards)
        # A block may start and end in the middle of a shard.
        largest = max(shard.size_bytes for shard in shards)
        needed = min(size_bytes, size_bytes * samples_at_once // samples + 2 * largest)
        if limit_bytes >= needed:
            return None
        return (
            f"--cache-limit holds {limit_bytes / 1e9:,.2f} GB of {self.info.split}, but an epoch reads from "
            f"{needed / 1e9:,.2f} GB at once, so shards are fetched several times. Raise the limit to that, or lower "
            f"data.order.shuffle_block_size"
        )

    def verify(
        self,
        shards: Sequence[ShardInfo],
        threads: int,
        on_shard: Callable[[ShardInfo], None] = lambda shard: None,
        ledger: VerifiedFiles | None = None,
    ) -> list[str]:
        """Compare the shards on this machine with the index, by size and hash.

        Args:
            shards: the shards as the index describes them.
            threads: number of shards to hash at once.
            on_shard: called after each shard that was hashed.
            ledger: for a dataset that is read in place. Files that it lists are not hashed again. The caller saves it.

        Returns:
            A line for each fetched shard that was broken. Such shards are removed, and fetched again when needed.

        Raises:
            WorldError: a shard is broken and cannot be fetched again. The message names it and says how to repair it.
        """
        if self.shard_cache.remote is not None:
            return [
                f"{self.shard_cache.path(shard.basename)} is fetched again: {reason}"
                for shard, reason in self.shard_cache.drop_broken(shards, threads, on_shard)
            ]
        path = self.shard_cache.path
        new = [shard for shard in shards if ledger is None or path(shard.basename) not in ledger]
        faults = faulty_shards(self.storage, new, threads, on_shard)
        if faults:
            shard, reason = faults[0]
            more = f" ({len(faults) - 1} more are broken)" if len(faults) > 1 else ""
            raise WorldError(f"{path(shard.basename)} is broken: {reason}{more}. {self.hint}")
        if ledger is not None:
            for shard in new:
                ledger.add(path(shard.basename))
        return []


def check_available(parts: Sequence[tuple[Split, Sequence[ShardInfo]]]) -> None:
    """Prepare the caches, and check that every shard is on this machine in its size, or can be fetched.

    Raises:
        UserError: the cache limit or the disk is too small.
        WorldError: shards are missing from the dataset, and the message names all of them; or the disk or the network
            fails.
    """
    for split, shards in parts:
        if split.shard_cache.remote is not None:
            split.shard_cache.prepare(shards)
    refuse_missing(parts)


def refuse_missing(parts: Sequence[tuple[Split, Sequence[ShardInfo]]]) -> None:
    """Refuse datasets that lack shards. Nothing is written.

    Raises:
        WorldError: shards are missing from the dataset, and the message names all of them.
    """
    missing = [(split, sentence) for split, shards in parts if (sentence := split.missing(shards))]
    if missing:
        raise WorldError(f"{'; '.join(sentence for _, sentence in missing)}. {missing[0][0].hint}")


@dataclass(frozen=True)
class Dataset:
    """A dataset at its location, and the cache folder for its shards, None if they are read in place."""

    storage: Storage
    cache: Path | None = None
    limit_bytes: int | None = None

    @classmethod
    def at(cls, location: str, cache: Path | None = None, limit_bytes: int | None = None) -> "Dataset":
        """Open a location that a user typed. Nothing is read yet.

        Raises:
            UserError: the location or the cache folder cannot be used, or there is a limit without a cache.
        """
        storage = open_storage(location)
        if isinstance(storage, LocalStorage) and cache is None:
            if limit_bytes is not None:
                raise UserError(
                    f"--cache-limit: {location} is read in place, and the only copy is never removed. "
                    f"Pass --cache FOLDER too, or leave the limit out"
                )
            return cls(storage)
        cache = default_cache() if cache is None else cache
        if isinstance(storage, LocalStorage) and cache.resolve().is_relative_to(storage.root.resolve()):
            raise UserError(f"--cache {cache} is inside the dataset {location}: choose a folder outside it")
        if cache.exists() and not cache.is_dir():
            raise UserError(f"--cache {cache} is a file: choose a folder")
        return cls(storage, cache, limit_bytes)

    @property
    def location(self) -> str:
        """The location as a user types it."""
        return self.storage.location

    def split(self, name: str) -> Split:
        """Open one split. Nothing is written before `check_available`.

        Raises:
            UserError: there is no such split, or it cannot be read.
        """
        storage = self.storage.child(name)
        info = read_split_info(storage)
        if self.cache is None and isinstance(storage, LocalStorage) and not info.packed:
            return Split(info, storage, ShardCache(storage.root))
        folder = (self.cache or default_cache()) / info.fingerprint / name
        return Split(info, storage, ShardCache(folder, unpacked(storage, info), self.limit_bytes))
