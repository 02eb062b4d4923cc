"""Verifying a dataset against its manifest, and rebuilding from the source just what is broken."""

import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.files import write_atomic, write_json
from imagenet_mds.fingerprint import file_xxh64
from imagenet_mds.manifest import KEYS_BASENAME, Manifest
from imagenet_mds.mds import INDEX_BASENAME, index_json, read_shard, shard_basename
from imagenet_mds.shards import faulty_shards, shard_fault
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.convert import keys_file, remove_partial, writing_to
from imagenet_mds_convert.images import Unusable, prepare
from imagenet_mds_convert.shard import build_shard
from imagenet_mds_convert.source import Source


@dataclass(frozen=True)
class Fault:
    """Something broken: the file, and what is wrong with it."""

    path: Path
    reason: str


def verify_split(
    folder: Path, manifest: Manifest, *, deep: bool, threads: int, on_shard: Callable[[], None] = lambda: None
) -> list[Fault]:
    """Compare every shard with the manifest by size and hash, and the index with both.

    Args:
        folder: the split's folder.
        manifest: what should be there.
        deep: decode every image of the whole shards too.
        threads: how many shards at once; hashing and decoding run outside Python's lock.
        on_shard: called after each shard.

    Returns:
        What is broken, in the order of the shards; empty if all is well.
    """
    broken = faulty_shards(folder, manifest.shards, threads, lambda shard: on_shard())
    faults = [*_index_faults(folder, manifest), *(Fault(folder / shard.basename, reason) for shard, reason in broken)]
    if deep:
        whole = [folder / shard.basename for shard in manifest.shards if shard not in [shard for shard, _ in broken]]
        with ThreadPoolExecutor(threads) as pool:
            reasons = pool.map(_undecodable, whole)
            faults += [Fault(path, reason) for path, reason in zip(whole, reasons, strict=True) if reason]
    return faults


def _index_faults(folder: Path, manifest: Manifest) -> Iterator[Fault]:
    path = folder / INDEX_BASENAME
    try:
        index = json.loads(path.read_bytes())
    except FileNotFoundError:
        yield Fault(path, "missing")
    except ValueError:
        yield Fault(path, "not JSON")
    else:
        if index != index_json(manifest.shard_infos(), manifest.policy.shard_size_bytes):
            yield Fault(path, "differs from the manifest")
    keys = folder / KEYS_BASENAME
    if not keys.exists():
        yield Fault(keys, "missing")
    elif file_xxh64(keys) != manifest.keys_xxh64:
        yield Fault(keys, "differs from the manifest")


def _undecodable(path: Path) -> str | None:
    for position, record in enumerate(read_shard(path)):
        try:
            prepare(record.jpeg, "decode")
        except Unusable as reason:
            return f"sample {position} (source index {record.index}): {reason}"
    return None


def repair_split(folder: Path, manifest: Manifest, faults: list[Fault], source: Source) -> list[Path]:
    """Rebuild the broken files of a split from its source, each checked against the manifest before it replaces
    anything.

    Returns:
        The files that were written.

    Raises:
        UserError: the source is not the one that the dataset was made from.
        WorldError: a rebuilt shard differs from the manifest, for the images have changed; nothing was replaced by it.
    """
    conversion = SplitConversion.plan_for(source, manifest.split, folder.parent, manifest.policy)
    if conversion.fingerprint != manifest.conversion:
        before, now = manifest.source, conversion.source_entry
        raise UserError(
            f"{folder} was made from another source ({before.samples:,} images, {before.fingerprint}; "
            f"this one has {now.samples:,} images, {now.fingerprint}): give the source it was made from"
        )
    entries = {shard.basename: shard for shard in manifest.shards}
    # A shard that is as the manifest has it has nothing to rebuild, though an image in it may not decode.
    broken = {
        name
        for name in {fault.path.name for fault in faults}
        if name not in entries or shard_fault(folder, entries[name])
    }
    with writing_to(folder):
        remove_partial(folder)
    written = []
    for shard in range(conversion.plan.shards):
        name = shard_basename(shard)
        if name not in broken:
            continue
        record, data = build_shard(conversion.task(shard))
        found = record.info.xxh64 if record.info else "nothing"
        if found != entries[name].xxh64:
            raise WorldError(
                f"{folder / name} cannot be rebuilt: the source now gives {found} and the manifest has "
                f"{entries[name].xxh64}; the source's images have changed since"
            )
        with writing_to(folder):
            write_atomic(folder / name, data)
        written.append(folder / name)
    with writing_to(folder):
        if INDEX_BASENAME in broken:
            write_json(folder / INDEX_BASENAME, index_json(manifest.shard_infos(), manifest.policy.shard_size_bytes))
            written.append(folder / INDEX_BASENAME)
        if KEYS_BASENAME in broken:
            left_out = {entry.key for entry in manifest.left_out}
            write_atomic(folder / KEYS_BASENAME, keys_file(conversion.stored(left_out)))
            written.append(folder / KEYS_BASENAME)
    return written
