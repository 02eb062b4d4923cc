"""The conversion of one split: what will be made, and what is already at the destination."""

import shutil
import tempfile
import time
from collections.abc import Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from imagenet_mds.dataset.manifest import (
    KEYS_BASENAME,
    MANIFEST_BASENAME,
    WORK_FOLDER,
    Manifest,
    NotTaken,
    Policy,
    SourceEntry,
    conversion_fingerprint,
    read_keys,
    read_manifest,
    why_no_manifest,
)
from imagenet_mds.dataset.mds import ShardInfo, index_json
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.images.policy import Scaling, compiled_check_pays, likely_bytes
from imagenet_mds_convert.plan import Plan, draws, held_out, make_plan
from imagenet_mds_convert.shards.build import ShardTask
from imagenet_mds_convert.shards.passes import GATHERED_BYTES
from imagenet_mds_convert.sources.base import Found, Sample, Source, Track, untracked
from imagenet_mds_convert.sources.folders import some

_STARTED = f"{WORK_FOLDER}/conversion.json"


class _Started(BaseModel):
    """The identity of a conversion, written before its first shard so that another one does not mix with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    conversion: str
    policy: Policy
    source: SourceEntry


@dataclass(frozen=True)
class SplitConversion:
    """The planned conversion of one split. Planning reads no pixel and writes nothing to the destination."""

    source: Source
    split: SplitName
    destination: Storage
    policy: Policy
    samples: list[Sample]
    plan: Plan
    source_entry: SourceEntry
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    not_taken: tuple[NotTaken, ...] = ()
    listing_seconds: float = 0.0
    """What listing the split took. A source that gathers reads as much in each pass."""

    @classmethod
    def plan_for(
        cls,
        source: Source,
        split: SplitName,
        dataset: Storage,
        policy: Policy,
        track: Track = untracked,
        present: frozenset[int] | None = None,
        listed: Mapping[SplitName, tuple[Found, float]] | None = None,
    ) -> "SplitConversion":
        """Plan the conversion of a split: fetch the split if the source needs that, list it, and cut it into shards.

        Args:
            source: the source of the images.
            split: the split.
            dataset: the destination of the dataset, which holds its splits.
            policy: how images are checked and stored.
            track: shows the progress of a download.
            present: the source's class numbers to keep, in which every image of the split is; None for all.
            listed: what `listing` returned for the source's splits, if they are listed already.

        Raises:
            UserError: the source has no such split, no images in it, or fewer than the subset needs.
            WorldError: the source cannot be downloaded.
        """
        read_from = policy.read_from(split)
        found, listing_seconds = (listed or {}).get(read_from) or listing(source, read_from, track)
        numbers = range(len(source.classes)) if present is None else sorted(present)
        classes = tuple(source.classes[number] for number in numbers)
        samples = found.samples
        if present is not None:
            renumbered = {number: place for place, number in enumerate(numbers)}
            if strange := sorted(
                {source.classes[sample.label] for sample in samples if sample.label not in renumbered}
            ):
                raise UserError(f"the source has images of classes that the dataset does not know: {some(strange)}")
            samples = [replace(sample, label=renumbered[sample.label]) for sample in samples]
        if policy.val_fraction is not None:
            samples = _held_out(samples, split, policy)
        if not samples:
            raise UserError(f"the source has no images of {split}: give another one, or pass --split")
        if policy.subset is not None and policy.subset > len(samples):
            raise UserError(f"--subset {policy.subset:,}: {split} has {len(samples):,} images; give that or less")
        entry = SourceEntry(
            kind=source.of(read_from).kind,
            samples=len(samples),
            # Classes are part of it: another class folder shifts later class numbers but changes no key.
            fingerprint=fingerprint([list(classes), [[sample.key, sample.size_bytes] for sample in samples]]),
        )
        plan = make_plan(
            samples,
            seed=policy.seed,
            shard_size_bytes=policy.shard_size_bytes,
            subset=policy.subset,
            likely_bytes=partial(likely_bytes, scaling=_scaling(policy), form=policy.form, half=policy.layout.half),
        )
        return cls(
            source.of(read_from),
            split,
            dataset.child(split),
            policy,
            samples,
            plan,
            entry,
            classes,
            tuple(source.class_names[number] for number in numbers),
            found.not_taken if read_from == split else (),
            listing_seconds,
        )

    @property
    def location(self) -> str:
        """The split's destination, for messages."""
        return self.destination.location

    @property
    def fingerprint(self) -> str:
        """The identity of this conversion: split, source and policy."""
        return conversion_fingerprint(self.split, self.source_entry, self.policy)

    def task(self, shard: int) -> ShardTask:
        """The task that makes the shard of this number."""
        return ShardTask(
            conversion=self.fingerprint,
            shard=shard,
            samples=tuple((index, self.samples[index]) for index in self.plan.shard(shard).tolist()),
            source=self.source,
            check=self.policy.check,
            scaling=_scaling(self.policy),
            form=self.policy.form,
            tile_growth=self.policy.tile_growth_limit,
            half_quality=self.policy.half_quality,
            compiled_check=compiled_check_pays(len(self.plan.order)),
            layout=self.policy.layout,
            destination=self.destination,
        )

    def index(self, shards: Sequence[ShardInfo]) -> dict[str, Any]:
        """The split's `index.json`."""
        return index_json(shards, self.policy.layout)

    def stored(self, left_out: Set[str]) -> list[Sample]:
        """The samples of the split in stored order, without those whose keys are in `left_out`."""
        planned = (self.samples[index] for index in self.plan.order.tolist())
        return [sample for sample in planned if sample.key not in left_out]

    def likely_bytes(self, indices: Iterable[int]) -> int:
        """Estimated bytes as stored of the images at these indices of the sorted source."""
        scaling, form, half = _scaling(self.policy), self.policy.form, self.policy.layout.half
        return sum(likely_bytes(self.samples[index].size_bytes, scaling, form, half=half) for index in indices)

    def source_bytes(self, shards: Iterable[int]) -> int:
        """Bytes in the source of the images of these shards."""
        return sum(self.samples[index].size_bytes for shard in shards for index in self.plan.shard(shard).tolist())

    @property
    def gathers_in(self) -> Path | None:
        """A folder on the disk where images are gathered: the destination's, or None (TMPDIR) if that is no disk."""
        if not isinstance(self.destination, LocalStorage):
            return None
        root = self.destination.root.absolute()
        return next(path for path in (root, *root.parents) if path.is_dir())

    def gathered_bytes(self, shards: Collection[int], needed_bytes: int) -> int:
        """The disk space that gathering takes beside the shards: as much as these need and a pass may have, of half of
        what is free; 0 where nothing is gathered.

        Args:
            shards: the shards that are missing.
            needed_bytes: what they will take of the disk themselves.
        """
        if self.source.gatherer is None:
            return 0
        free = self.destination.free_bytes()
        left = shutil.disk_usage(tempfile.gettempdir()).free if free is None else free - needed_bytes
        return max(min(self.source_bytes(shards), GATHERED_BYTES, left // 2), 0)

    def likely_shard_bytes(self, shard: int) -> int:
        """Estimated bytes as stored of a shard's images; the plan cuts shards by these estimates."""
        return self.likely_bytes(self.plan.shard(shard).tolist())

    @property
    def sizes_known(self) -> bool:
        """Whether nearly all images are stored in the size of their files; restart tiles add two percent."""
        as_files = _scaling(self.policy).most_pixels is None and not self.policy.layout.half
        return as_files and not self.source.drawn

    def finished(self) -> Manifest | None:
        """The manifest if this conversion is complete at the destination; None if it must be started or continued.

        Raises:
            UserError: the destination holds something else.
        """
        try:
            names = self.destination.list_names()
        except NotADirectoryError:
            raise UserError(f"{self.location} is a file or lies below one: give another destination") from None
        if MANIFEST_BASENAME in names:
            manifest = read_manifest(self.destination)
            self._refuse_other(manifest.conversion, manifest.policy, manifest.source)
            return manifest
        # The work folder alone was left by a run that was killed before it wrote its identity.
        strange = [name for name in names if name != WORK_FOLDER]
        try:
            started = _Started.model_validate_json(self.destination.read(_STARTED))
        except FileNotFoundError:
            if KEYS_BASENAME in names:
                raise UserError(why_no_manifest(self.destination)) from None
            if strange:
                raise UserError(
                    f"{self.location} holds something that imagenet-mds did not write ({strange[0]}): "
                    f"give another destination or empty it"
                ) from None
        except ValidationError:
            raise UserError(
                f"{self.location}/{_STARTED} is broken, or from another version, so it is unknown what was being made "
                f"here: start again with --overwrite, or give another destination"
            ) from None
        else:
            self._refuse_other(started.conversion, started.policy, started.source)
        return None

    def _refuse_other(self, conversion: str, policy: Policy, source: SourceEntry) -> None:
        if conversion == self.fingerprint:
            return
        reasons = []
        if source.fingerprint != self.source_entry.fingerprint:
            reasons.append(
                f"another source ({source.samples:,} images, {source.fingerprint}; "
                f"now {self.source_entry.samples:,} images, {self.source_entry.fingerprint})"
                f"{more_taken(source, self.source_entry)}"
            )
        elif source != self.source_entry:
            reasons.append(f"another kind of source ({source.kind}, now {self.source_entry.kind})")
        now = self.policy.model_dump()
        reasons += [
            f"another {name} ({value}, now {now[name]})"
            for name, value in policy.model_dump().items()
            if value != now[name]
        ]
        raise UserError(
            f"{self.location} holds another conversion, {conversion}, and this one is {self.fingerprint}: "
            f"{'; '.join(reasons)}. Give another destination, the same options, or --overwrite"
        )

    def refuse_other_sibling(self, split: SplitName) -> None:
        """Refuse to convert this split beside a finished one that it does not fit: one with other rules of which images
        and classes it has, with other class numbers, or with images of this one.

        Args:
            split: the other split.

        Raises:
            UserError: the other split is complete and does not fit.
            WorldError: its keys are damaged.
        """
        sibling = self.destination.parent.child(split)
        if sibling.size_bytes(MANIFEST_BASENAME) is None:
            return
        theirs = read_manifest(sibling)
        holds_out = self.policy.val_fraction is not None
        # Where nothing is held out, the seed decides the order alone.
        for name in ("val_fraction", "classes", *(["seed"] if holds_out else [])):
            if (before := getattr(theirs.policy, name)) != (now := getattr(self.policy, name)):
                option = f"--{name.replace('_', '-')}"
                raise UserError(
                    f"{sibling.location} was converted with {option} {before}, and this split has {option} {now}: the "
                    f"two would not fit together. {_AT_ONCE}"
                )
        if (classes := tuple(entry.wnid for entry in theirs.classes)) != self.classes:
            both = f"{_described(classes, self.classes)}, and this split has {_described(self.classes, classes)}"
            raise UserError(f"{sibling.location} has {both}: a class would have two numbers. {_AT_ONCE}")
        if not holds_out:
            return
        keys = set(read_keys(sibling, theirs.samples))
        if common := [sample.key for sample in self.samples if sample.key in keys]:
            raise UserError(
                f"{sibling.location} has {len(common):,} of the images of this split ({some(common)}), because the "
                f"source has changed since it was converted. {_AT_ONCE}"
            )

    def mark_started(self) -> None:
        """Write this conversion's identity to the destination, so that another conversion does not mix with it.

        Raises:
            OSError: the destination cannot be written.
        """
        started = _Started(conversion=self.fingerprint, policy=self.policy, source=self.source_entry)
        self.destination.write(_STARTED, json_bytes(started.model_dump()))


_AT_ONCE = "Convert both splits at once, from one source, into another destination or with --overwrite"


def _described(classes: Sequence[str], others: Sequence[str]) -> str:
    """Number and fingerprint of the classes of a split, and those that the other split lacks."""
    known = set(others)
    alone = [name for name in classes if name not in known]
    lacking = f", of which it alone has {some(alone)}" if alone else ""
    return f"{len(classes):,} classes ({fingerprint(list(classes))}){lacking}"


def more_taken(before: SourceEntry, now: SourceEntry) -> str:
    """The likely reason why a source has more images than it had, as the end of a sentence; empty if it has not."""
    if now.samples <= before.samples:
        return ""
    return ", because images were added, or because other suffixes and deeper folders are taken since version 0.1"


def listing(source: Source, split: SplitName, track: Track = untracked) -> tuple[Found, float]:
    """What the source has of a split, fetched if it needs that, and the seconds that listing took.

    Raises:
        UserError, WorldError: as `Source.fetch` and `Source.find`.
    """
    source.fetch(split, track)
    started = time.perf_counter()
    return source.find(split), time.perf_counter() - started


def _held_out(samples: list[Sample], split: SplitName, policy: Policy) -> list[Sample]:
    """The samples of train that are kept in it, or those that are held out as val.

    Raises:
        UserError: no class has two images.
    """
    assert policy.val_fraction is not None
    labels = np.fromiter((sample.label for sample in samples), np.int64, len(samples))
    of_val = held_out(labels, draws([sample.key for sample in samples], policy.seed), policy.val_fraction)
    if not of_val.any():
        raise UserError(
            f"--val-fraction {policy.val_fraction:g}: every class has one image, so none can be held out as val. Add "
            f"images, or leave the option out"
        )
    return [sample for sample, is_val in zip(samples, of_val.tolist(), strict=True) if is_val == (split == "val")]


def _scaling(policy: Policy) -> Scaling:
    return Scaling(policy.max_side, policy.min_side, policy.quality)
