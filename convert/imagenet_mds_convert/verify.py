"""Verifying a dataset against its manifest, and rebuilding from the source just what is broken."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from imagenet_mds.dataset.integrity import faulty_shards, shard_fault
from imagenet_mds.dataset.manifest import KEYS_BASENAME, Manifest
from imagenet_mds.dataset.mds import INDEX_BASENAME, decode_shard, index_json, shard_basename
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, stored_xxh64, writing_to
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.destination import remove_partials
from imagenet_mds_convert.images.prepare import check_stored
from imagenet_mds_convert.publish import keys_file, versions
from imagenet_mds_convert.shards.build import build_shard
from imagenet_mds_convert.sources.base import Source, Unusable


@dataclass(frozen=True)
class Fault:
    """Something broken: the file's name in its split, and what is wrong with it."""

    name: str
    reason: str


def verify_split(
    split: Storage, manifest: Manifest, *, deep: bool, threads: int, on_shard: Callable[[], None] = lambda: None
) -> list[Fault]:
    """Compare every shard with the manifest by size and hash, and the index with both.

    Args:
        split: where the split is.
        manifest: what should be there.
        deep: decode every image of the whole shards too.
        threads: how many shards at once; hashing and decoding run outside Python's lock.
        on_shard: called after each shard.

    Returns:
        What is broken, in the order of the shards; empty if all is well.
    """
    broken = faulty_shards(split, manifest.shards, threads, lambda shard: on_shard())
    faults = [*_index_faults(split, manifest), *(Fault(shard.basename, reason) for shard, reason in broken)]
    if deep:
        known = {shard.basename for shard, _ in broken}
        whole = [shard.basename for shard in manifest.shards if shard.basename not in known]
        with ThreadPoolExecutor(threads) as pool:
            reasons = pool.map(lambda name: _undecodable(split, name), whole)
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


def _undecodable(split: Storage, name: str) -> str | None:
    for position, record in enumerate(decode_shard(split.read(name), f"{split.location}/{name}")):
        try:
            check_stored(record.image)
        except Unusable as reason:
            return f"sample {position} (source index {record.index}): {reason}"
    return None


def repair_split(split: Storage, manifest: Manifest, faults: list[Fault], source: Source) -> list[str]:
    """Rebuild the broken files of a split from its source, each checked against the manifest before it replaces
    anything.

    Returns:
        The names of the files that were written.

    Raises:
        UserError: the source has other images than the one that the dataset was made from.
        WorldError: the source's storage failed, or a rebuilt shard differs from the manifest, for the images have
            changed; nothing was replaced by it.
    """
    conversion = SplitConversion.plan_for(source, manifest.split, split.parent, manifest.policy)
    before, now = manifest.source, conversion.source_entry
    # Of whichever kind it is: the same images give the same shards, and each is compared before it is written.
    if (now.samples, now.fingerprint) != (before.samples, before.fingerprint):
        raise UserError(
            f"{split.location} was made from another source ({before.samples:,} images, {before.fingerprint}; "
            f"this one has {now.samples:,} images, {now.fingerprint}): give one with the images it was made from"
        )
    entries = {shard.basename: shard for shard in manifest.shards}
    # A shard that is as the manifest has it has nothing to rebuild, though an image in it may not decode.
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
    """What else may be why, for images that are not stored as they are: other versions than those of the manifest."""
    now = versions()
    differing = [
        f"{name} {version}, now {now.get(name, 'none')}"
        for name, version in sorted(manifest.versions.items())
        if version != now.get(name)
    ]
    return f", or other versions make other bytes of them ({'; '.join(differing)})" if differing else ""
