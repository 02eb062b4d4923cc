"""Verifies a dataset against its manifest, and rebuilds broken files from the source."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from imagenet_mds.dataset.access import read_dataset
from imagenet_mds.dataset.integrity import faulty_shards, shard_fault
from imagenet_mds.dataset.manifest import KEYS_BASENAME, Manifest, read_manifest
from imagenet_mds.dataset.mds import INDEX_BASENAME, decode_shard, index_json, shard_basename
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, stored_xxh64, writing_to
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.destination import locked, remove_partials
from imagenet_mds_convert.images.policy import compiled_check_pays
from imagenet_mds_convert.images.prepare import check_stored
from imagenet_mds_convert.publish import keys_file, versions
from imagenet_mds_convert.shards.build import build_shard
from imagenet_mds_convert.sources.base import Source, Track, Unusable, untracked


@dataclass(frozen=True)
class Fault:
    """A broken file: its name within the split, and what is wrong with it."""

    name: str
    reason: str


def verify_dataset(
    location: str,
    *,
    on_split: Callable[[Storage, Manifest, list[Fault]], None],
    on_repair: Callable[[Storage, str], None],
    source: Callable[[SplitName], Source] | None = None,
    deep: bool = False,
    threads: int = 1,
    track: Track = untracked,
) -> int:
    """Verify every split of a dataset, and repair what is broken if a source is given.

    Args:
        location: the dataset.
        on_split: called with a split, its manifest and its faults, before they are repaired.
        on_repair: called with the name of each file that was rebuilt.
        source: opens what to rebuild broken files of a split from.
        deep: decode every image as well.
        threads: number of shards to check at once.
        track: shows the progress.

    Returns:
        The number of files that are still broken.

    Raises:
        UserError: there is no complete dataset at the location, another process is writing to it, or it was made from
            other images than the source has.
        WorldError: the storage failed, or a file cannot be rebuilt.
    """
    broken = 0
    for split, manifest in read_dataset(location):
        with track(f"verify {split.name}", len(manifest.shards), "shards") as advance:
            faults = verify_split(split, manifest, deep=deep, threads=threads, on_shard=lambda: advance(1))
        on_split(split, manifest, faults)
        repaired: list[str] = []
        if faults and source:
            with locked(split):
                if read_manifest(split) != manifest:
                    raise UserError(f"{split.location} was converted again in the meantime: verify it again")
                repaired = repair_split(split, manifest, faults, source(manifest.split), track)
        for name in repaired:
            on_repair(split, name)
        # An image that does not decode in an intact shard came from the source like that, so nothing was rebuilt.
        broken += len({fault.name for fault in faults} - set(repaired))
    return broken


def verify_split(
    split: Storage, manifest: Manifest, *, deep: bool, threads: int, on_shard: Callable[[], None] = lambda: None
) -> list[Fault]:
    """Compare every shard with the manifest by size and hash, and index and keys with it too.

    Args:
        split: the split's storage.
        manifest: its manifest.
        deep: decode every image of the intact shards as well.
        threads: number of shards to check at once; hashing and decoding run outside Python's lock.
        on_shard: called after each shard.

    Returns:
        The faults of index and keys, of shards that differ, and of shards with images that do not decode, each in
        order; empty if nothing is broken.

    Raises:
        WorldError: the storage failed.
    """
    broken = faulty_shards(split, manifest.shards, threads, lambda shard: on_shard())
    faults = [*_index_faults(split, manifest), *(Fault(shard.basename, reason) for shard, reason in broken)]
    if deep:
        known = {shard.basename for shard, _ in broken}
        whole = [shard.basename for shard in manifest.shards if shard.basename not in known]
        with ThreadPoolExecutor(threads) as pool:
            compiled = compiled_check_pays(manifest.samples)
            reasons = pool.map(lambda name: _undecodable(split, name, compiled), whole)
            faults += [Fault(name, reason) for name, reason in zip(whole, reasons, strict=True) if reason]
    return faults


def _index_faults(split: Storage, manifest: Manifest) -> Iterator[Fault]:
    try:
        index = json.loads(split.read(INDEX_BASENAME))
    except FileNotFoundError:
        yield Fault(INDEX_BASENAME, "missing")
    except ValueError:
        yield Fault(INDEX_BASENAME, "not JSON")
    else:
        if index != _index(manifest):
            yield Fault(INDEX_BASENAME, "differs from the manifest")
    if split.size_bytes(KEYS_BASENAME) is None:
        yield Fault(KEYS_BASENAME, "missing")
    elif stored_xxh64(split, KEYS_BASENAME) != manifest.keys_xxh64:
        yield Fault(KEYS_BASENAME, "differs from the manifest")


def _index(manifest: Manifest) -> dict[str, Any]:
    policy = manifest.policy
    return index_json(manifest.shards, policy.shard_size_bytes, raw=policy.raw)


def _undecodable(split: Storage, name: str, compiled_check: bool) -> str | None:
    for position, record in enumerate(decode_shard(split.read(name), f"{split.location}/{name}")):
        try:
            check_stored(record.image, compiled_check)
        except Unusable as reason:
            return f"sample {position} (source index {record.index}): {reason}"
    return None


def repair_split(
    split: Storage, manifest: Manifest, faults: list[Fault], source: Source, track: Track = untracked
) -> list[str]:
    """Rebuild the broken files of a split from its source, and compare each with the manifest before it is written.

    Args:
        split: the split's storage, which must be locked.
        manifest: its manifest.
        faults: what `verify_split` found.
        source: a source with the images that the dataset was made from.
        track: shows the progress of a download of the source.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: the source has other images than the dataset was made from.
        WorldError: the storage failed, or a rebuilt shard differs from the manifest because the images have changed;
            that shard was not written.
    """
    wnids, present = {entry.wnid for entry in manifest.classes}, None
    if manifest.policy.classes == "present":
        present = frozenset(number for number, wnid in enumerate(source.classes) if wnid in wnids)
    conversion = SplitConversion.plan_for(source, manifest.split, split.parent, manifest.policy, track, present)
    before, now = manifest.source, conversion.source_entry
    # Any kind of source will do: the same images give the same shards, and each shard is compared before it is written.
    if (now.samples, now.fingerprint) != (before.samples, before.fingerprint):
        raise UserError(
            f"{split.location} was made from another source ({before.samples:,} images, {before.fingerprint}; "
            f"this one has {now.samples:,} images, {now.fingerprint}): give one with the same images"
        )
    entries = {shard.basename: shard for shard in manifest.shards}
    # An intact shard needs no rebuilding, even if an image in it does not decode.
    broken = {
        name for name in {fault.name for fault in faults} if name not in entries or shard_fault(split, entries[name])
    }
    with writing_to(split):
        remove_partials(split, complete=True)
    written = []
    for shard in range(conversion.plan.shards):
        name = shard_basename(shard)
        if name not in broken:
            continue
        record, shard_bytes = build_shard(conversion.task(shard))
        found = record.info.xxh64 if record.info else "nothing"
        if found != entries[name].xxh64:
            raise WorldError(
                f"{split.location}/{name} cannot be rebuilt: the source now gives {found} and the manifest has "
                f"{entries[name].xxh64}; the source's images have changed since{_other_versions(manifest)}"
            )
        with writing_to(split):
            split.write(name, shard_bytes)
        written.append(name)
    left_out = {entry.key for entry in manifest.left_out}
    index = _index(manifest)
    for name, data in ((INDEX_BASENAME, json_bytes(index)), (KEYS_BASENAME, keys_file(conversion.stored(left_out)))):
        if name in broken:
            with writing_to(split):
                split.write(name, data)
            written.append(name)
    return written


def _other_versions(manifest: Manifest) -> str:
    """The other possible reason for different bytes, as part of a message: versions that differ from the manifest's."""
    now = versions()
    differing = [
        f"{name} {version}, now {now.get(name, 'none')}"
        for name, version in sorted(manifest.versions.items())
        if version != now.get(name)
    ]
    return f", or other versions encode them differently ({'; '.join(differing)})" if differing else ""
