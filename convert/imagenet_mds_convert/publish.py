"""Publishes a split: keys, index, manifest, in this order, so that a split with a manifest is complete."""

from collections.abc import Sequence

import PIL
import simplejpeg
import xxhash

from imagenet_mds import __version__
from imagenet_mds.dataset.manifest import (
    KEYS_BASENAME,
    MANIFEST_BASENAME,
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
from imagenet_mds.storage.base import writing_to
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.destination import remove_leftovers
from imagenet_mds_convert.shards.record import ShardRecord
from imagenet_mds_convert.sources.base import Sample


def _check_unmixed(conversion: SplitConversion, shards: list[ShardInfo]) -> None:
    """Check that the shards are unchanged: S3 cannot be locked, so another process may have replaced them."""
    destination = conversion.destination
    conversion.finished()
    sizes = {entry.name: entry.size_bytes for entry in destination.listing().files}
    for shard in shards:
        if sizes.get(shard.basename) != shard.size_bytes:
            raise WorldError(
                f"{destination.location}/{shard.basename} was changed: another process is writing to this destination. "
                f"Run one conversion per destination, then run the same command again"
            )


def publish(conversion: SplitConversion, records: list[ShardRecord]) -> Manifest:
    """Write keys, index and manifest of a split whose shards are complete.

    Args:
        conversion: the split.
        records: the records of all its shards, in order.

    Raises:
        UserError: none of the images can be used, or another conversion was started in the same place in S3.
        WorldError: the storage cannot be written, or another process has changed a shard.
    """
    destination = conversion.destination
    left_out = {key for record in records for key, _ in record.left_out}
    stored = conversion.stored(left_out)
    if not stored:
        key, reason = records[0].left_out[0]
        raise UserError(
            f"none of the {len(left_out):,} images of {conversion.split} can be used; the first, {key}: {reason}"
        )
    counts = [0] * len(conversion.classes)
    for sample in stored:
        counts[sample.label] += 1
    shards = [record.info for record in records if record.info]
    with writing_to(destination):
        _check_unmixed(conversion, shards)
    keys = keys_file(stored)
    classes = [
        ClassEntry(wnid=wnid, name=name, samples=count)
        for wnid, name, count in zip(conversion.classes, conversion.class_names, counts, strict=True)
    ]
    manifest = Manifest(
        split=conversion.split,
        samples=len(stored),
        classes=classes,
        shards=shards,
        left_out=[LeftOut(key=key, reason=reason) for record in records for key, reason in record.left_out],
        not_taken=list(conversion.not_taken),
        # A change made to every image is not an exception, and 60,000 entries would hide the real ones.
        changed=[
            Changed(key=key, change=change)
            for record in records
            for key, change in record.changed
            if not conversion.source.drawn
        ],
        scaled=sum(record.scaled for record in records),
        tiled=sum(record.tiled for record in records),
        half_bytes=sum(record.half_bytes for record in records),
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
    remove_leftovers(destination)
    return manifest


def versions() -> dict[str, str]:
    """Versions of the packages that decide the bytes of images that are encoded here."""
    return {"imagenet-mds": __version__, "pillow": PIL.__version__, "simplejpeg": simplejpeg.__version__}


def find_duplicates(stored: Sequence[Sample], digests: Sequence[str]) -> list[Duplicate]:
    """Stored images whose file equals that of an earlier image of the split, of the same class or of another one.

    Args:
        stored: the samples of the split, in stored order.
        digests: the hash of each sample's file, in the same order.
    """
    first: dict[str, str] = {}
    duplicates = []
    for sample, digest in zip(stored, digests, strict=True):
        original = first.setdefault(digest, sample.key)
        if original != sample.key:
            duplicates.append(Duplicate(key=sample.key, of=original))
    return duplicates


def keys_file(stored: Sequence[Sample]) -> bytes:
    """The content of `keys.txt`: one line per sample of the split, in stored order."""
    return "".join(f"{sample.key}\n" for sample in stored).encode("utf-8", "surrogateescape")
