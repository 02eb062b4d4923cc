"""The job of the ranks: the launcher writes it as JSON, each rank reads it. Imports no torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_mds.dataset.decompress import UnpackedSplit
from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.atomic import write_json
from imagenet_mds_train.sweep.curve import Sweep


@dataclass(frozen=True)
class SplitJob:
    """A split that the ranks read.

    folder: of its shards on this machine.
    samples: how many of them, subset applied.
    remote: where shards that are not here are fetched from, None where they are read in place.
    packed: whether they are stored compressed there.
    limit_bytes: the room that they may take here.
    """

    folder: str
    samples: int
    remote: str | None = None
    packed: bool = False
    limit_bytes: int | None = None

    @classmethod
    def of(cls, shard_cache: ShardCache, samples: int) -> "SplitJob":
        """Describe the first `samples` samples of a split."""
        return cls(
            folder=str(shard_cache.folder),
            samples=samples,
            remote=shard_cache.remote.location if shard_cache.remote else None,
            packed=isinstance(shard_cache.remote, UnpackedSplit),
            limit_bytes=shard_cache.limit_bytes,
        )

    def shard_cache(self) -> ShardCache:
        """The split's shards, opened again."""
        remote = open_storage(self.remote) if self.remote else None
        source = UnpackedSplit(remote) if remote and self.packed else remote
        return ShardCache(Path(self.folder), source, self.limit_bytes)


@dataclass(frozen=True)
class RankJob:
    """What the ranks of one start do.

    config: the configuration, as plain values.
    val: None where the run never validates.
    classes: the classes in the order of their numbers.
    identity: what must not change within the run.
    checkpoint: the file to continue from, None at the start of a run.
    attempt: which start of the run this is, counted from 1.
    device: what each rank computes on; it ends if it does not get it.
    weights: the file to take the first weights from, None to draw them.
    pretrained: whether they may be of other classes, and another program's.
    experiment: the group of runs that this one is of, if any.
    until_batch: the batch to end after, with a validation of one batch if no epoch ended before; None to train to the
        end.
    mirror: the address of the run in S3, None for a run that is only here.
    generation: of the lease of that run.
    sweep: the learning rates to try, which take the place of the schedule and its epochs; None for a run.
    replay: whether the batches after the checkpoint are trained for their losses alone; nothing else is written.
    """

    config: dict[str, Any]
    run_folder: str
    train: SplitJob
    val: SplitJob | None
    classes: list[str]
    identity: dict[str, Any]
    checkpoint: str | None
    attempt: int
    device: Literal["cpu", "gpu"] = "cpu"
    weights: str | None = None
    pretrained: bool = False
    experiment: str | None = None
    until_batch: int | None = None
    mirror: str | None = None
    generation: int = 0
    sweep: Sweep | None = None
    replay: bool = False

    @property
    def run_name(self) -> str:
        """The name of the run's folder."""
        return Path(self.run_folder).name

    def write(self, path: Path) -> None:
        """Write the job for the ranks.

        Raises:
            OSError: the file cannot be written.
        """
        write_json(path, asdict(self))

    @classmethod
    def read(cls, path: Path) -> "RankJob":
        """Read a job that `write` wrote."""
        return cls.of(json.loads(path.read_bytes()))

    @classmethod
    def of(cls, values: dict[str, Any]) -> "RankJob":
        """A job from what JSON has of it."""
        splits = {split: values[split] and SplitJob(**values[split]) for split in ("train", "val")}
        return cls(**values | splits | {"sweep": values["sweep"] and Sweep(**values["sweep"])})
