"""Runs a conversion: plans the splits, makes the shards that are missing, publishes each split."""

import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field

from imagenet_mds.dataset.manifest import Manifest, Policy
from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage, writing_to
from imagenet_mds.vocabulary import SPLITS, EngineName, SplitName
from imagenet_mds.words import counted
from imagenet_mds_convert.conversion import SplitConversion, listing
from imagenet_mds_convert.cost import needed_bytes
from imagenet_mds_convert.destination import (
    clear_split,
    locked,
    refuse_foreign,
    remove_leftovers,
    remove_partials,
)
from imagenet_mds_convert.publish import publish
from imagenet_mds_convert.shards.build import Spent
from imagenet_mds_convert.shards.passes import in_passes
from imagenet_mds_convert.shards.pool import Engine, run_tasks
from imagenet_mds_convert.shards.ray import run_tasks_on_ray
from imagenet_mds_convert.shards.record import ShardRecord, read_record, recorded_shards
from imagenet_mds_convert.sources.base import Found, Source, Track, untracked
from imagenet_mds_convert.sources.folders import some

LEAST_GATHERED_BYTES = 1 << 30
"""The least that gathering takes of the disk, of which half stays free; with less, the source would be read more than a
hundred times."""

_SPARE_BYTES = 16 << 20
"""Free disk space required beyond the shards: for index, keys, manifest, and a margin."""


@dataclass
class Tally:
    """Counts of one split while it is converted. Rates must be computed from what was made in this run, so images of
    shards that an earlier run made are not in `made_images`, and their bytes are not in `source_bytes`."""

    started: float
    shards: int = 0
    kept_shards: int = 0
    made_images: int = 0
    left_out: int = 0
    source_bytes: int = 0
    spent: Spent = field(default_factory=Spent)
    digests: Counter[str] = field(default_factory=Counter)
    """How often the hash of each stored image's file occurs."""
    also_elsewhere: int = 0
    """Number of files that are in a split that was converted before in this run too."""

    @property
    def seconds(self) -> float:
        """Seconds since the split was started; never 0."""
        return max(time.monotonic() - self.started, 1e-9)

    def count(self, record: ShardRecord, spent: Spent | None) -> None:
        """Count a shard, where `spent` is None if an earlier run made it."""
        self.shards += 1
        self.left_out += len(record.left_out)
        self.digests.update(record.digests)
        if spent is None:
            self.kept_shards += record.info is not None
            return
        self.made_images += record.images
        self.source_bytes += record.source_bytes
        self.spent.add(spent)


OnShard = Callable[[ShardRecord, Spent | None], None]
"""Called once for each shard, with its record and, if it was made in this run, the seconds spent."""

ShowProgress = Callable[[SplitConversion, Tally], AbstractContextManager[OnShard]]
"""Shows the progress of one split. The context manager yields what to call for each shard once the tally has it."""

OnConverted = Callable[[SplitConversion, Manifest, Tally | None], None]
"""Called for each split that is complete; the tally is None if it was complete before."""


def plan_splits(
    source: Source, splits: Sequence[SplitName], dataset: Storage, policy: Policy, track: Track = untracked
) -> list[SplitConversion]:
    """Plan each split. A subset and half-size copies are of train only, because validation reads every image whole.
    Classes that are present in any split of the source count.

    Raises:
        UserError, WorldError: as `SplitConversion.plan_for`.
    """
    whole = policy.model_copy(update={"subset": None, "half_quality": None})
    needed = source.splits if policy.classes == "present" else dict.fromkeys(map(policy.read_from, splits))
    # Listed once, because an archive or parquet file is read for it.
    listed = {split: listing(source, split, track) for split in needed}
    present = present_classes(found for found, _ in listed.values()) if policy.classes == "present" else None
    return [
        SplitConversion.plan_for(source, split, dataset, policy if split == "train" else whole, track, present, listed)
        for split in splits
    ]


def present_classes(listed: Iterable[Found]) -> frozenset[int]:
    """The numbers of the classes that have an image in any split.

    Raises:
        UserError: fewer than two have.
    """
    present = frozenset(sample.label for found in listed for sample in found.samples)
    if len(present) < 2:
        raise UserError("the source has images of one class: a classifier needs two at least")
    return present


def class_notes(conversions: Sequence[SplitConversion]) -> list[str]:
    """What a person should know about classes without an image: those that nobody has, and those that only one split
    has, each in one line."""
    notes = []
    present = {one.split: {sample.label for sample in one.samples} for one in conversions}
    classes = conversions[0].classes
    anywhere = set().union(*present.values())
    if len(anywhere) < len(classes) and "train" in present:
        notes.append(
            f"{len(anywhere):,} of the {len(classes):,} classes have images, and a network will have {len(classes):,} "
            f"outputs; `--classes present` numbers those {len(anywhere):,} alone"
        )
    for one in conversions:
        if missing := sorted(anywhere - present[one.split]):
            names = [one.classes[number] for number in missing]
            notes.append(f"{one.split} has no image of {counted(len(names), 'class', 'classes')}: {some(names)}")
    return notes


def convert_splits(
    conversions: Sequence[SplitConversion],
    workers: int,
    *,
    show_progress: ShowProgress,
    on_converted: OnConverted,
    engine: EngineName = "local",
    overwrite: bool = False,
    track: Track = untracked,
) -> list[Manifest]:
    """Convert the splits one after the other, each under a lock of its destination.

    Args:
        conversions: the planned splits.
        workers: number of processes; the bytes do not depend on it, nor on the engine.
        show_progress: shows the progress of a split; it is not called for a split that is complete already.
        on_converted: called after each split.
        engine: what runs the shard tasks.
        overwrite: remove the dataset that is at the destination first.
        track: shows the progress of gathering images.

    Returns:
        The manifests of the splits.

    Raises:
        UserError: a destination holds something else, is in use or has too little room, the other split there does not
            fit, or none of the images can be used.
        WorldError: as `convert_split`.
    """
    for conversion in conversions:
        # Check every destination before the first is changed, so that a mistake leaves nothing half done.
        if overwrite:
            refuse_foreign(conversion.destination)
        elif not conversion.finished():
            refuse_small_disk(conversion, recorded_shards(conversion.destination))
    converted = {conversion.split for conversion in conversions}
    for conversion in conversions:
        for split in SPLITS:
            if split not in converted:
                conversion.refuse_other_sibling(split)
    manifests: list[Manifest] = []
    before: set[str] = set()
    for conversion in conversions:
        manifest, tally = _convert_one(conversion, workers, show_progress, engine, overwrite, track)
        if tally:
            tally.also_elsewhere = sum(tally.digests[digest] for digest in tally.digests.keys() & before)
            before |= tally.digests.keys()
        on_converted(conversion, manifest, tally)
        manifests.append(manifest)
    return manifests


def _convert_one(
    conversion: SplitConversion,
    workers: int,
    show_progress: ShowProgress,
    engine: EngineName,
    overwrite: bool,
    track: Track,
) -> tuple[Manifest, Tally | None]:
    with locked(conversion.destination):
        # Check again: another process may have written here before we had the lock.
        if overwrite:
            refuse_foreign(conversion.destination)
            clear_split(conversion.destination)
        elif manifest := conversion.finished():
            remove_leftovers(conversion.destination)
            return manifest, None
        tally = Tally(started=time.monotonic())
        with show_progress(conversion, tally) as on_shard:

            def count(record: ShardRecord, spent: Spent | None) -> None:
                tally.count(record, spent)
                on_shard(record, spent)

            run = run_tasks_on_ray if engine == "ray" else run_tasks
            return convert_split(conversion, workers, count, run, track), tally


def convert_split(
    conversion: SplitConversion,
    workers: int,
    on_shard: OnShard = lambda record, spent: None,
    engine: Engine | None = None,
    track: Track = untracked,
) -> Manifest:
    """Make the missing shards of a split, then its index, then its manifest.

    Args:
        conversion: the planned split; its destination must be `locked`, and `finished()` must have returned None since.
        workers: number of processes; the bytes do not depend on it, nor on the engine.
        on_shard: called once for each shard.
        engine: what runs the shard tasks; processes of this machine if not given.
        track: shows the progress of gathering images.

    Raises:
        UserError: the disk is too small, none of the images can be used, or another conversion was started in the same
            place in S3.
        WorldError: the disk is full, the source fails, a worker is lost, or another process writes to the same place in
            S3. Complete shards are kept, and the same command continues.
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
        conversion.mark_started()
    most_bytes = conversion.gathered_bytes(missing, needed_bytes(conversion, missing))
    # A cluster's other machines cannot read what is gathered on this one.
    gatherer = conversion.source.gatherer if engine is not run_tasks_on_ray else None
    planned = (conversion.task(shard) for shard in missing)
    for tasks in in_passes(planned, gatherer, most_bytes, conversion.gathers_in, track):
        for record, spent in (engine or run_tasks)(tasks, workers, destination):
            records[record.shard] = record
            on_shard(record, spent)
    return publish(conversion, [records[shard] for shard in range(conversion.plan.shards)])


def refuse_small_disk(conversion: SplitConversion, done: Collection[int]) -> None:
    """Check that the shards that are not done fit on the destination's disk.

    Raises:
        UserError: they do not.
        WorldError: the source's storage failed while images were measured.
    """
    missing = [shard for shard in range(conversion.plan.shards) if shard not in done]
    free = conversion.destination.free_bytes()
    if free is None and missing and conversion.source.gatherer is not None:
        gathering = min(conversion.source_bytes(missing), 2 * LEAST_GATHERED_BYTES)
        if (there := shutil.disk_usage(tempfile.gettempdir()).free) < gathering:
            raise UserError(
                f"{tempfile.gettempdir()} has {there / 1e9:,.1f} GB free, and gathering images takes "
                f"{gathering / 1e9:,.1f} GB: set TMPDIR to a folder on a larger disk"
            )
    if not missing or free is None:
        return
    needed = needed_bytes(conversion, missing)
    if conversion.source.gatherer is not None:
        needed += min(conversion.source_bytes(missing), 2 * LEAST_GATHERED_BYTES)
    if needed + _SPARE_BYTES > free:
        raise UserError(
            f"{conversion.location} needs about {needed / 1e9:,.1f} GB more "
            f"and its disk has {free / 1e9:,.1f} GB free: give a larger disk or a --subset"
        )
