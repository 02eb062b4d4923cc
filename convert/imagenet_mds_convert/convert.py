"""The run of a conversion: shards by an engine, index, manifest; and the same again for what is missing."""

import re
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress

import PIL
import simplejpeg
import xxhash

from imagenet_mds import __version__
from imagenet_mds.dataset.manifest import (
    KEYS_BASENAME,
    MANIFEST_BASENAME,
    WORK_FOLDER,
    Changed,
    ClassEntry,
    Duplicate,
    LeftOut,
    Manifest,
    content_fingerprint,
)
from imagenet_mds.dataset.mds import INDEX_BASENAME, ShardInfo
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.cost import needed_bytes
from imagenet_mds_convert.engines import Engine, run_tasks
from imagenet_mds_convert.shard import ShardRecord, Spent, read_record, recorded_shards
from imagenet_mds_convert.source import Sample

_SPARE_BYTES = 16 << 20
"""Free disk to ask for beyond the shards: index, keys, manifest, and room to breathe."""


@contextmanager
def held(destination: Storage) -> Iterator[None]:
    """Hold a split's place against other conversions: what is seen, removed and written there, from the look at what it
    holds to the manifest, is under one hold. S3 cannot be held.

    Raises:
        UserError: another process is converting to it.
        WorldError: the storage refuses.
    """
    with ExitStack() as stack:
        try:
            with writing_to(destination, but=BlockingIOError):
                stack.enter_context(destination.lock())
        except BlockingIOError:
            raise UserError(
                f"{destination.location} is being converted to by another process: wait for it, or give another "
                f"destination"
            ) from None
        yield


def clear_split(destination: Storage) -> None:
    """Empty a split's place, which must be `held`: the manifest first, so that a half removed split is never taken for
    whole, and the work folder last, so that the place is known for ours until it is empty.

    Raises:
        WorldError: the storage refuses.
    """
    names = destination.list_names()
    if not names:
        return
    with writing_to(destination):
        destination.write(f"{WORK_FOLDER}/clearing", b"")
        for name in (MANIFEST_BASENAME, INDEX_BASENAME, *(name for name in names if name != WORK_FOLDER), WORK_FOLDER):
            destination.delete(name)


def is_ours(basename: str) -> bool:
    """Whether a conversion writes files of this name into a split's place."""
    ours = {MANIFEST_BASENAME, INDEX_BASENAME, KEYS_BASENAME, WORK_FOLDER}
    return basename in ours or re.fullmatch(r"shard\.\d{5,}\.mds|\..+\.tmp", basename) is not None


def remove_leavings(destination: Storage) -> None:
    """Remove what this run and killed ones have left beside a complete split. If that fails, nothing is lost."""
    with suppress(OSError, UserError):
        destination.delete(WORK_FOLDER)
        remove_partials(destination, complete=True)


def convert_split(
    conversion: SplitConversion,
    workers: int,
    on_shard: Callable[[ShardRecord, Spent | None], None] = lambda record, spent: None,
    engine: Engine | None = None,
) -> Manifest:
    """Make what is missing of a split, then its index, then its manifest.

    Args:
        conversion: what to make; its place must be `held`, and `finished()` must have returned None since.
        workers: processes; the bytes do not depend on it, nor on the engine.
        on_shard: called once for each shard, with its record and, if it was made now, what it took.
        engine: what runs the shard tasks; processes of this machine if not given.

    Raises:
        UserError: the disk is too small, none of the images can be used, or another conversion was begun in the same
            place in S3.
        WorldError: a full disk, a source that fails, a lost worker, or another process that writes in the same place in
            S3; complete shards stay, and the same command continues.
    """
    destination = conversion.destination
    records: dict[int, ShardRecord] = {}
    for shard in recorded_shards(destination):
        if shard < conversion.plan.shards and (record := read_record(destination, shard, conversion.fingerprint)):
            records[shard] = record
            on_shard(record, None)
    missing = [shard for shard in range(conversion.plan.shards) if shard not in records]
    refuse_small_disk(conversion, records)
    with writing_to(destination):
        remove_partials(destination, complete=False)
        conversion.begin()
    for record, spent in (engine or run_tasks)((conversion.task(shard) for shard in missing), workers, destination):
        records[record.shard] = record
        on_shard(record, spent)
    return _publish(conversion, [records[shard] for shard in range(conversion.plan.shards)])


def remove_partials(destination: Storage, *, complete: bool) -> None:
    """Remove what a killed run left half written; see `Storage.remove_partials`."""
    for folder in ("", WORK_FOLDER):
        destination.remove_partials(folder, complete=complete)


def refuse_small_disk(conversion: SplitConversion, done: Collection[int]) -> None:
    """Ask for room for the shards that are not done.

    Raises:
        UserError: there is too little.
    """
    missing = [shard for shard in range(conversion.plan.shards) if shard not in done]
    free = conversion.destination.free_bytes()
    if not missing or free is None:
        return
    needed = needed_bytes(conversion, missing)
    if needed + _SPARE_BYTES > free:
        raise UserError(
            f"{conversion.location} needs about {needed / 1e9:,.1f} GB more "
            f"and its disk has {free / 1e9:,.1f} GB free: give a larger disk or a --subset"
        )


def _refuse_mixed(conversion: SplitConversion, shards: list[ShardInfo]) -> None:
    """See that what was made is there still: S3 cannot be held, and another process may have removed or replaced it."""
    destination = conversion.destination
    conversion.finished()
    sizes = {entry.name: entry.size_bytes for entry in destination.listing().files}
    for shard in shards:
        if sizes.get(shard.basename) != shard.size_bytes:
            raise WorldError(
                f"{destination.location}/{shard.basename} is not as it was made: another process writes here too. "
                f"Let one alone convert to one place, then run the same command again"
            )


def _publish(conversion: SplitConversion, records: list[ShardRecord]) -> Manifest:
    """Write keys, index and manifest, in this order: what exists is complete."""
    destination = conversion.destination
    left_out = {key for record in records for key, _ in record.left_out}
    stored = conversion.stored(left_out)
    if not stored:
        key, reason = records[0].left_out[0]
        raise UserError(
            f"none of the {len(left_out):,} images of {conversion.split} can be used; the first, {key}: {reason}"
        )
    counts = [0] * len(conversion.source.classes)
    for sample in stored:
        counts[sample.label] += 1
    shards = [record.info for record in records if record.info]
    with writing_to(destination):
        _refuse_mixed(conversion, shards)
    keys = keys_file(stored)
    classes = [
        ClassEntry(wnid=wnid, name=name, samples=count)
        for wnid, name, count in zip(conversion.source.classes, conversion.source.names, counts, strict=True)
    ]
    manifest = Manifest(
        split="train" if conversion.split == "train" else "val",
        samples=len(stored),
        classes=classes,
        shards=shards,
        left_out=[LeftOut(key=key, reason=reason) for record in records for key, reason in record.left_out],
        # What is done to every picture is no exception; 60,000 of them would hide one.
        changed=[
            Changed(key=key, change=change)
            for record in records
            for key, change in record.changed
            if not conversion.source.drawn
        ],
        scaled=sum(record.scaled for record in records),
        tiled=sum(record.tiled for record in records),
        duplicates=find_duplicates(stored, [digest for record in records for digest in record.digests]),
        policy=conversion.policy,
        source=conversion.source_entry,
        conversion=conversion.fingerprint,
        keys_xxh64=xxhash.xxh64(keys).hexdigest(),
        versions=versions(),
        fingerprint=content_fingerprint(classes, shards),
    )
    with writing_to(destination):
        destination.sync()
        destination.write(KEYS_BASENAME, keys)
        destination.write(INDEX_BASENAME, json_bytes(conversion.index(shards)))
        destination.write(MANIFEST_BASENAME, json_bytes(manifest.model_dump(mode="json")))
    remove_leavings(destination)
    return manifest


def versions() -> dict[str, str]:
    """The versions of what decides the bytes of pictures that are not stored as they are."""
    return {"imagenet-mds": __version__, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}


def find_duplicates(stored: Sequence[Sample], digests: Sequence[str]) -> list[Duplicate]:
    """Stored images whose files are those of another of their class.

    Args:
        stored: the samples of the split, in stored order.
        digests: the hash of each one's file, in the same order.
    """
    first: dict[tuple[int, str], str] = {}
    duplicates = []
    for sample, digest in zip(stored, digests, strict=True):
        original = first.setdefault((sample.label, digest), sample.key)
        if original != sample.key:
            duplicates.append(Duplicate(key=sample.key, of=original))
    return duplicates


def keys_file(stored: Sequence[Sample]) -> bytes:
    """The content of `keys.txt`: a line for each sample of the split, in stored order."""
    return "".join(f"{sample.key}\n" for sample in stored).encode("utf-8", "surrogateescape")
