"""Verifies a dataset against its manifest, and rebuilds broken files from the source."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import accumulate
from typing import Any, cast

from imagenet_mds.dataset.access import read_dataset
from imagenet_mds.dataset.integrity import faulty_shards
from imagenet_mds.dataset.manifest import KEYS_BASENAME, Manifest, read_keys, read_manifest
from imagenet_mds.dataset.mds import INDEX_BASENAME, ShardInfo, decode_shard, index_json, shard_basename
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, stored_xxh64, writing_to
from imagenet_mds.vocabulary import SourceKind, SplitName
from imagenet_mds_convert.conversion import SplitConversion, more_taken
from imagenet_mds_convert.destination import locked, remove_partials
from imagenet_mds_convert.images.policy import compiled_check_pays
from imagenet_mds_convert.images.prepare import check_stored
from imagenet_mds_convert.publish import keys_file, versions
from imagenet_mds_convert.shards.build import build_shard
from imagenet_mds_convert.shards.lost import CRASH_REASON, run_in_processes
from imagenet_mds_convert.shards.passes import in_passes
from imagenet_mds_convert.sources.base import Source, Track, Unusable, untracked


@dataclass(frozen=True)
class Fault:
    """A broken file: its name within the split, and what is wrong with it."""

    name: str
    reason: str


@dataclass(frozen=True)
class BadImage:
    """An image of an intact shard that does not decode: the shard's name, the image's key, and what is wrong with it.
    It came from the source like that, so rebuilding the shard would change nothing."""

    shard: str
    key: str
    reason: str


@dataclass
class Broken:
    """What is broken in a dataset: the number of files that still are, and of images that do not decode."""

    files: int = 0
    images: int = 0


def verify_dataset(
    location: str,
    *,
    on_split: Callable[[Storage, Manifest, list[Fault], list[BadImage]], None],
    on_repair: Callable[[Storage, str], None],
    source: Callable[[SplitName, SourceKind], Source] | None = None,
    deep: bool = False,
    threads: int = 1,
    track: Track = untracked,
) -> Broken:
    """Verify every split of a dataset, and repair what is broken if a source is given.

    Args:
        location: the dataset.
        on_split: called with a split, its manifest, its faults before they are repaired, and the images that do not
            decode.
        on_repair: called with the name of each file that was rebuilt.
        source: opens what to rebuild broken files of a split from, given the split and the layout that it was made of.
        deep: decode every image as well.
        threads: number of shards to check at once.
        track: shows the progress.

    Returns:
        What is still broken.

    Raises:
        UserError: there is no complete dataset at the location, another process is writing to it, or it was made from
            other images than the source has.
        WorldError: the storage failed, or a file cannot be rebuilt.
    """
    broken = Broken()
    for split, manifest in read_dataset(location):
        with track(f"verify {split.name}", len(manifest.shards), "shards") as advance:
            faults = verify_split(split, manifest, threads=threads, on_shard=lambda: advance(1))
        bad: list[BadImage] = []
        if deep:
            damaged = {fault.name for fault in faults}
            whole = [shard for shard in manifest.shards if shard.basename not in damaged]
            with track(f"decode {split.name}", len(whole), "shards") as advance:
                bad = bad_images(split, manifest, whole, workers=threads, on_shard=lambda: advance(1))
        on_split(split, manifest, faults, bad)
        repaired: list[str] = []
        if faults and source:
            opened = source(manifest.policy.read_from(manifest.split), cast("SourceKind", manifest.source.kind))
            with locked(split):
                if read_manifest(split) != manifest:
                    raise UserError(f"{split.location} was converted again in the meantime: verify it again")
                repaired = repair_split(split, manifest, faults, opened, track)
        for name in repaired:
            on_repair(split, name)
        broken.files += len({fault.name for fault in faults} - set(repaired))
        broken.images += len(bad)
    return broken


def verify_split(
    split: Storage, manifest: Manifest, *, threads: int, on_shard: Callable[[], None] = lambda: None
) -> list[Fault]:
    """Compare every shard with the manifest by size and hash, and index and keys with it too.

    Args:
        split: the split's storage.
        manifest: its manifest.
        threads: number of shards to check at once; hashing runs outside Python's lock.
        on_shard: called after each shard.

    Returns:
        The faults of index and keys, and of shards that differ, each in order; empty if nothing is broken.

    Raises:
        WorldError: the storage failed.
    """
    broken = faulty_shards(split, manifest.shards, threads, lambda shard: on_shard())
    return [*_index_faults(split, manifest), *(Fault(shard.basename, reason) for shard, reason in broken)]


@dataclass(frozen=True)
class _DeepCheck:
    """The check of every image of a shard; `first` is the number in the split of its first sample."""

    split: Storage
    shard: str
    first: int
    compiled_check: bool
    crashing: Mapping[int, str] = field(default_factory=dict)


def bad_images(
    split: Storage,
    manifest: Manifest,
    shards: Sequence[ShardInfo],
    *,
    workers: int,
    on_shard: Callable[[], None] = lambda: None,
) -> list[BadImage]:
    """Decode every image of intact shards, in processes, because an image may crash its decoder.

    Args:
        split: the split's storage.
        manifest: its manifest.
        shards: the shards to decode.
        workers: number of processes.
        on_shard: called after each shard.

    Returns:
        The images that do not decode, in stored order.

    Raises:
        WorldError: the storage failed, or a worker was lost.
    """
    keys = _keys(split, manifest)
    firsts = dict(zip((shard.basename for shard in manifest.shards), _starts(manifest), strict=True))
    compiled = compiled_check_pays(manifest.samples)
    tasks = (_DeepCheck(split, shard.basename, firsts[shard.basename], compiled) for shard in shards)
    found: dict[int, BadImage] = {}
    for shard, bad in run_in_processes(_decode_shard, tasks, workers, _images_of, _without_crashing):
        for number, reason in bad.items():
            found[number] = BadImage(shard, keys[number] if keys else f"sample {number:,}", reason)
        on_shard()
    return [found[number] for number in sorted(found)]


def _starts(manifest: Manifest) -> list[int]:
    """The number in the split of each shard's first sample."""
    return list(accumulate((shard.samples for shard in manifest.shards), initial=0))[:-1]


def _keys(split: Storage, manifest: Manifest) -> list[str] | None:
    """The keys of the split's samples; None if they are broken, which is a fault of its own."""
    try:
        return read_keys(split, manifest.samples)
    except WorldError:
        return None


def _decode_shard(task: _DeepCheck) -> tuple[str, dict[int, str]]:
    """The name of the shard, and the number in the split of each image that does not decode, with the reason."""
    bad = {}
    for position, check in enumerate(_images_of(task)):
        try:
            if reason := task.crashing.get(position):
                raise Unusable(reason)
            check()
        except Unusable as unusable:
            bad[task.first + position] = str(unusable)
    return task.shard, bad


def _images_of(task: _DeepCheck) -> Sequence[Callable[[], object]]:
    """The images of a shard as calls that decode one each."""
    records = decode_shard(task.split.read(task.shard), f"{task.split.location}/{task.shard}")
    return [partial(check_stored, record.image, record.half, task.compiled_check) for record in records]


def _without_crashing(task: _DeepCheck, crashing: Mapping[int, str]) -> _DeepCheck:
    return replace(task, crashing=crashing)


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
    return index_json(manifest.shards, manifest.policy.layout)


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
            f"this one has {now.samples:,} images, {now.fingerprint}){more_taken(before, now)}: give one with the same "
            f"images"
        )
    entries = {shard.basename: shard for shard in manifest.shards}
    broken = {fault.name for fault in faults}
    crashing = {entry.key: entry.reason for entry in manifest.left_out if entry.reason.startswith(CRASH_REASON)}
    with writing_to(split):
        remove_partials(split, complete=True)
    shards = [shard for shard in range(conversion.plan.shards) if shard_basename(shard) in broken]
    most_bytes = conversion.gathered_bytes(shards, sum(entries[shard_basename(shard)].size_bytes for shard in shards))
    planned = (replace(conversion.task(shard), crashing=crashing) for shard in shards)
    runs = in_passes(planned, conversion.source.gatherer, most_bytes, conversion.gathers_in, track)
    written = []
    for task in (task for run in runs for task in run):
        name = shard_basename(task.shard)
        record, shard_bytes = build_shard(task)
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
