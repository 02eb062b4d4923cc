"""One split on its way from a source to a folder: what it will be, and what of it is already there."""

from collections.abc import Iterable, Sequence, Set
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from imagenet_mds.dataset.manifest import (
    MANIFEST_BASENAME,
    WORK_FOLDER,
    Manifest,
    Policy,
    SourceEntry,
    conversion_fingerprint,
    read_manifest,
)
from imagenet_mds.dataset.mds import ShardInfo, index_json
from imagenet_mds.errors import UserError
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.images.policy import Form, Scaling, likely_bytes
from imagenet_mds_convert.plan import Plan, make_plan
from imagenet_mds_convert.shards.build import ShardTask
from imagenet_mds_convert.sources.base import Sample, Source

_BEGUN = f"{WORK_FOLDER}/conversion.json"


class _Begun(BaseModel):
    """What a conversion says of itself before its first shard, so that another one does not mix with it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    conversion: str
    policy: Policy
    source: SourceEntry


@dataclass(frozen=True)
class SplitConversion:
    """One split on its way from a source to its place. Making one reads no pixel and writes nothing."""

    source: Source
    split: str
    destination: Storage
    policy: Policy
    samples: list[Sample]
    plan: Plan
    source_entry: SourceEntry

    @classmethod
    def plan_for(cls, source: Source, split: str, dataset: Storage, policy: Policy) -> "SplitConversion":
        """List the source and plan the split.

        Raises:
            UserError: the source has no such split or no images in it, or fewer than the subset asks for.
        """
        if split not in source.splits:
            raise UserError(f"the source has no {split}/: it has {' and '.join(source.splits)}; see `--split`")
        samples = source.samples(split)
        if policy.subset is not None and policy.subset > len(samples):
            raise UserError(f"--subset {policy.subset:,}: {split} has {len(samples):,} images; give that or less")
        entry = SourceEntry(
            kind=source.kind,
            samples=len(samples),
            # The classes too: a folder more moves the numbers of those behind it, and leaves every key as it is.
            fingerprint=fingerprint([list(source.classes), [[sample.key, sample.size_bytes] for sample in samples]]),
        )
        plan = make_plan(
            samples,
            seed=policy.seed,
            shard_size_bytes=policy.shard_size_bytes,
            subset=policy.subset,
            likely_bytes=partial(likely_bytes, scaling=_scaling(policy), form=_form(policy)),
        )
        return cls(source, split, dataset.child(split), policy, samples, plan, entry)

    @property
    def location(self) -> str:
        """Where the split goes, as a person reads it."""
        return self.destination.location

    @property
    def fingerprint(self) -> str:
        """The name of this conversion: source, split and policy."""
        return conversion_fingerprint(self.split, self.source_entry, self.policy)

    def task(self, shard: int) -> ShardTask:
        """The task that makes one shard."""
        return ShardTask(
            conversion=self.fingerprint,
            shard=shard,
            samples=tuple((place, self.samples[place]) for place in self.plan.shard(shard).tolist()),
            source=self.source,
            check=self.policy.check,
            scaling=_scaling(self.policy),
            form=_form(self.policy),
            size_limit_bytes=self.policy.shard_size_bytes,
            destination=self.destination,
        )

    def index(self, shards: Sequence[ShardInfo]) -> dict[str, Any]:
        """The split's `index.json`."""
        return index_json(shards, self.policy.shard_size_bytes, raw=self.policy.raw)

    def stored(self, left_out: Set[str]) -> list[Sample]:
        """The samples of the split in stored order, but for those whose keys are in `left_out`."""
        planned = (self.samples[place] for place in self.plan.order.tolist())
        return [sample for sample in planned if sample.key not in left_out]

    def likely_bytes(self, places: Iterable[int]) -> int:
        """Bytes of the images at these places of the sorted source as they are most likely stored."""
        scaling, form = _scaling(self.policy), _form(self.policy)
        return sum(likely_bytes(self.samples[place].size_bytes, scaling, form) for place in places)

    def likely_shard_bytes(self, shard: int) -> int:
        """Bytes of a shard's images as they are most likely stored; it is cut by them."""
        return self.likely_bytes(self.plan.shard(shard).tolist())

    @property
    def sizes_known(self) -> bool:
        """Whether images are stored in the size of their files, but for a few; restart tiles add a hundredth."""
        return _scaling(self.policy).most_pixels is None and not self.source.drawn

    def finished(self) -> Manifest | None:
        """The manifest, if this very conversion is complete at the destination; None if it is to be made or continued.

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
        # The work folder alone is of a run killed before it could say what it makes.
        strange = [name for name in names if name != WORK_FOLDER]
        try:
            begun = _Begun.model_validate_json(self.destination.read(_BEGUN))
        except FileNotFoundError:
            if strange:
                raise UserError(
                    f"{self.location} holds something that imagenet-mds did not write ({strange[0]}): "
                    f"give another destination or empty it"
                ) from None
        except ValidationError:
            raise UserError(
                f"{self.location}/{_BEGUN} is broken, or of another version, and does not say what was being made "
                f"here: start anew with --overwrite, or give another destination"
            ) from None
        else:
            self._refuse_other(begun.conversion, begun.policy, begun.source)
        return None

    def _refuse_other(self, conversion: str, policy: Policy, source: SourceEntry) -> None:
        if conversion == self.fingerprint:
            return
        reasons = []
        if source.fingerprint != self.source_entry.fingerprint:
            reasons.append(
                f"another source ({source.samples:,} images, {source.fingerprint}; "
                f"now {self.source_entry.samples:,} images, {self.source_entry.fingerprint})"
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

    def begin(self) -> None:
        """Say at the destination what is being made, so that another conversion does not mix with it."""
        begun = _Begun(conversion=self.fingerprint, policy=self.policy, source=self.source_entry)
        self.destination.write(_BEGUN, json_bytes(begun.model_dump()))


def _scaling(policy: Policy) -> Scaling:
    return Scaling(policy.max_side, policy.min_side, policy.quality)


def _form(policy: Policy) -> Form:
    return "raw" if policy.raw else "tiles" if policy.tiles else "file"
