"""One split on its way from a source to a folder: what it will be, and what of it is already there."""

import json
from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.files import write_json
from imagenet_mds.fingerprint import fingerprint
from imagenet_mds.manifest import (
    MANIFEST_BASENAME,
    Manifest,
    Policy,
    SourceEntry,
    conversion_fingerprint,
    read_manifest,
)
from imagenet_mds_convert.plan import Plan, make_plan
from imagenet_mds_convert.shard import WORK_FOLDER, ShardTask
from imagenet_mds_convert.source import Sample, Source

_BEGUN_BASENAME = "conversion.json"


@dataclass(frozen=True)
class _Begun:
    """What a conversion says of itself before its first shard, so that another one does not mix with it."""

    conversion: str
    policy: Policy
    source: SourceEntry

    @classmethod
    def read(cls, path: Path) -> "_Begun":
        raw = json.loads(path.read_bytes())
        return cls(raw["conversion"], Policy(**raw["policy"]), SourceEntry(**raw["source"]))

    def write(self, path: Path) -> None:
        write_json(
            path,
            {
                "conversion": self.conversion,
                "policy": self.policy.model_dump(),
                "source": self.source.model_dump(),
            },
        )


@dataclass(frozen=True)
class SplitConversion:
    """One split on its way from a source to a folder. Making one reads no pixel and writes nothing."""

    source: Source
    split: str
    folder: Path
    policy: Policy
    samples: list[Sample]
    plan: Plan
    source_entry: SourceEntry

    @classmethod
    def plan_for(cls, source: Source, split: str, destination: Path, policy: Policy) -> "SplitConversion":
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
        plan = make_plan(samples, seed=policy.seed, shard_size_bytes=policy.shard_size_bytes, subset=policy.subset)
        return cls(source, split, destination / split, policy, samples, plan, entry)

    @property
    def fingerprint(self) -> str:
        """The name of this conversion: source, split and policy."""
        return conversion_fingerprint(self.split, self.source_entry, self.policy)

    def task(self, shard: int) -> ShardTask:
        """The task that makes one shard."""
        return ShardTask(
            shard=shard,
            samples=tuple((place, self.samples[place]) for place in self.plan.shard(shard).tolist()),
            source=self.source,
            check=self.policy.check,
            size_limit_bytes=self.policy.shard_size_bytes,
            folder=self.folder,
        )

    def stored(self, left_out: Set[str]) -> list[Sample]:
        """The samples of the split in stored order, but for those whose keys are in `left_out`."""
        planned = (self.samples[place] for place in self.plan.order.tolist())
        return [sample for sample in planned if sample.key not in left_out]

    def shard_source_bytes(self, shard: int) -> int:
        """Bytes of a shard's images as they lie in the source."""
        return sum(self.samples[place].size_bytes for place in self.plan.shard(shard).tolist())

    def finished(self) -> Manifest | None:
        """The manifest, if this very conversion is complete at the destination; None if it is to be made or continued.

        Raises:
            UserError: the destination holds something else.
        """
        if (self.folder / MANIFEST_BASENAME).exists():
            manifest = read_manifest(self.folder)
            self._refuse_other(manifest.conversion, manifest.policy, manifest.source)
            return manifest
        begun = self.folder / WORK_FOLDER / _BEGUN_BASENAME
        if begun.exists():
            said = _Begun.read(begun)
            self._refuse_other(said.conversion, said.policy, said.source)
        elif self.folder.exists() and (strange := self._strangers()):
            raise UserError(
                f"{self.folder} holds something that imagenet-mds did not write ({strange[0]}): "
                f"give another destination or empty it"
            )
        return None

    def _strangers(self) -> list[str]:
        """What is in the folder, but for the work folder of a run killed before it could say what it makes."""
        if not self.folder.is_dir():
            raise UserError(f"{self.folder} is a file: give another destination or remove it")
        return sorted(path.name for path in self.folder.iterdir() if path.name != WORK_FOLDER)

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
            f"{self.folder} holds another conversion, {conversion}, and this one is {self.fingerprint}: "
            f"{'; '.join(reasons)}. Give another destination, the same options, or --overwrite"
        )

    def begin(self) -> None:
        """Make the folder and say in it what is being made, so that another conversion does not mix with it."""
        (self.folder / WORK_FOLDER).mkdir(parents=True, exist_ok=True)
        _Begun(self.fingerprint, self.policy, self.source_entry).write(self.folder / WORK_FOLDER / _BEGUN_BASENAME)
