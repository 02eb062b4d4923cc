"""Starting a run, or continuing it: everything that can be known before a rank starts, and no torch.

A mistake shows within a second here, and not after the ranks have imported a training library.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.config import TrainConfig
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.files import write_json
from imagenet_mds.manifest import Manifest, ShardEntry, read_manifest
from imagenet_mds.shards import faulty_shards
from imagenet_mds_train.launch import launch
from imagenet_mds_train.rank import Order
from imagenet_mds_train.records import CheckpointRecord, RunFolder, refuse_other


@dataclass(frozen=True)
class Start:
    """A run that is ready to start or to go on."""

    config: TrainConfig
    dataset: Path
    train: Manifest
    val: Manifest
    run: RunFolder
    checkpoint: CheckpointRecord | None
    notes: tuple[str, ...]

    @classmethod
    def prepare(cls, config: TrainConfig, dataset: Path, run: RunFolder) -> "Start":
        """Look at dataset and run folder, and refuse what cannot work.

        Raises:
            UserError: no dataset, splits that do not fit together, too few images, a run of another dataset or recipe.
            WorldError: the run's checkpoints are broken.
        """
        train, val = read_manifest(dataset / "train"), read_manifest(dataset / "val")
        if train.classes_fingerprint != val.classes_fingerprint:
            raise UserError(
                f"{dataset}: train has {len(train.classes)} classes ({train.classes_fingerprint}) and val "
                f"{len(val.classes)} ({val.classes_fingerprint}): convert both splits from one source"
            )
        subset = config.data.subset_samples()
        if subset is not None and subset > train.samples:
            raise UserError(
                f"data.subset asks for {subset:,} training images and {dataset} has {train.samples:,}: "
                f"give data.subset=null to train on all of them"
            )
        samples = subset or train.samples
        if samples < config.global_batch_size:
            raise UserError(
                f"{samples:,} training images do not fill one batch of global_batch_size={config.global_batch_size}: "
                f"give a smaller one"
            )
        if 0 < (found := gpus()) < config.ranks:
            raise UserError(f"{config.ranks} ranks want a GPU each and there are {found}: give --ranks {found}")
        identity = _identity(config, train, val)
        refuse_other(run.path, run.read_identity(), identity)
        checkpoint, notes = run.newest_checkpoint() if run.read_result() is None else (None, [])
        if checkpoint is not None:
            refuse_other(run.checkpoints / checkpoint.basename, checkpoint.identity, identity)
        return cls(config, dataset, train, val, run, checkpoint, tuple(notes))

    @property
    def identity(self) -> dict[str, Any]:
        """What must not change within the run."""
        return _identity(self.config, self.train, self.val)

    @property
    def train_samples(self) -> int:
        """Training images, subset applied."""
        return self.config.data.subset_samples() or self.train.samples

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of an epoch; images that do not fill a last batch wait for the next epoch's order."""
        return self.train_samples // self.config.global_batch_size

    def describe(self) -> list[tuple[str, str]]:
        """The run in words, for `--plan` and the start."""
        config, total = self.config, self.batches_per_epoch * self.config.schedule.epochs
        on = [name for name, value in config.algorithms.model_dump().items() if value]
        if config.augment.randaugment:
            on.append("randaugment")
        begin = (
            f"batch {self.checkpoint.batch:,} of {total:,}, epoch {self.checkpoint.epoch + 1}"
            if self.checkpoint
            else "0"
        )
        every = config.checkpoint.every_batches
        return [
            ("run", str(self.run.path)),
            ("dataset", f"{self.dataset} ({self.train.fingerprint})"),
            (
                "training images",
                f"{self.train_samples:,} of {self.train.samples:,} in {len(self.train.classes)} classes",
            ),
            ("validation images", f"{self.val.samples:,}"),
            ("model", f"ResNet-{config.model.depth} at {config.augment.size_px} px"),
            ("device", _device_words(self.config.ranks)),
            ("batch", f"{config.global_batch_size} = {config.ranks} ranks x {config.device_batch_size}"),
            ("steps", f"{total:,} = {config.schedule.epochs} epochs x {self.batches_per_epoch:,}"),
            ("learning rate", f"{config.optimizer.lr:g}, warm-up {config.schedule.warmup_epochs:g} epochs, cosine"),
            ("algorithms", ", ".join(on) or "none"),
            (
                "checkpoints",
                f"{f'every {every:,} batches and ' if every else ''}each epoch, {config.checkpoint.keep} kept",
            ),
            ("starts at", begin),
        ]

    def begin(self) -> None:
        """Record the run; from here on it is this run and no other. Hold the run (`RunFolder.exclusive`) first."""
        if self.checkpoint is not None:
            self.run.remove_after(self.checkpoint.batch)
        self.run.begin(self.config.model_dump(mode="json"), self.identity)

    def verify_shards(self, on_shard: Callable[[ShardEntry], None] = lambda shard: None) -> None:
        """Compare the shards to be read with the manifest; those unchanged since this run last did are not read again.

        Raises:
            WorldError: a shard is broken; it is named, with the command that repairs it.
        """
        seen_path = self.run.path / "verified.json"
        seen = _read_seen(seen_path)
        for split, shards in (("train", self.train_shards()), ("val", self.val.shards)):
            folder = self.dataset / split
            new = [shard for shard in shards if seen.get(_seen_name(folder, shard)) != _state(folder / shard.basename)]
            faults = faulty_shards(folder, new, threads=len(os.sched_getaffinity(0)), on_shard=on_shard)
            if faults:
                shard, reason = faults[0]
                more = f" ({len(faults) - 1} more are broken)" if len(faults) > 1 else ""
                raise WorldError(
                    f"{folder / shard.basename} is broken: {reason}{more}. Mend it with "
                    f"`imagenet-mds verify {self.dataset} --repair SOURCE`, SOURCE being what it was converted from"
                )
            seen |= {_seen_name(folder, shard): _state(folder / shard.basename) or [] for shard in new}
        write_json(seen_path, seen)

    def train_shards(self) -> list[ShardEntry]:
        """The training shards that hold the subset."""
        kept, left = [], self.train_samples
        for shard in self.train.shards:
            if left <= 0:
                break
            kept.append(shard)
            left -= shard.samples
        return kept

    def go(self, lock: int | None = None) -> int:
        """Start the ranks and wait for them.

        Args:
            lock: the descriptor that holds the run.

        Returns:
            The exit status.
        """
        starts = [event for event in self.run.events() if event["event"] == "start"]
        config = self.config.model_dump(mode="json")
        order = Order(
            config=config,
            run_folder=str(self.run.path),
            dataset=str(self.dataset),
            train_samples=self.train_samples,
            val_samples=self.val.samples,
            classes=[entry.wnid for entry in self.train.classes],
            identity=self.identity,
            checkpoint=str(self.run.checkpoints / self.checkpoint.basename) if self.checkpoint else None,
            attempt=len(starts) + 1,
        )
        path = self.run.path / "order.json"
        order.write(path)
        return launch(self.config.ranks, path, self.run.path, lock)


def _identity(config: TrainConfig, train: Manifest, val: Manifest) -> dict[str, Any]:
    return {
        "dataset": {"train": train.fingerprint, "val": val.fingerprint, "classes": train.classes_fingerprint},
        "recipe": config.recipe(),
    }


def gpus() -> int:
    """How many NVIDIA GPUs the ranks will see, without asking torch; 0 where there is no driver."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([name for name in visible.split(",") if name.strip() not in ("", "-1")])
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return 0
    listed = subprocess.run([tool, "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU ") for line in listed.stdout.splitlines())


def _device_words(ranks: int) -> str:
    found = gpus()
    return f"{ranks} of {found} GPUs" if found else "CPU: there is no GPU here"


def _seen_name(folder: Path, shard: ShardEntry) -> str:
    """Where the shard is, on this machine: a copy elsewhere was not verified."""
    return str((folder / shard.basename).resolve())


def _read_seen(path: Path) -> dict[str, list[int]]:
    """What was verified before; nothing where that cannot be read, for then it is done again."""
    try:
        seen: dict[str, list[int]] = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return seen if isinstance(seen, dict) else {}


def _state(path: Path) -> list[int] | None:
    """What changes when a file is written or replaced: its number, size and times. None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns]
