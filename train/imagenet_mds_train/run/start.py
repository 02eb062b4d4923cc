"""Starting or continuing a run: everything that can be known before a rank starts. Imports no torch.

A mistake shows here within a second, not after every rank has imported a training library.
"""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from imagenet_mds.dataset.access import Dataset, Split
from imagenet_mds.dataset.mds import ShardInfo
from imagenet_mds.dataset.verified import VerifiedFiles
from imagenet_mds.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError
from imagenet_mds.process.processors import usable_processors
from imagenet_mds_train.checkpoints.store import CheckpointRecord
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.config.subset import refuse_subset
from imagenet_mds_train.interruption.notice import Notice
from imagenet_mds_train.loggers.lines import append_event
from imagenet_mds_train.nodes.leader import Leader
from imagenet_mds_train.nodes.place import Nodes
from imagenet_mds_train.nodes.wire import Interrupted
from imagenet_mds_train.run.environment import threads_per_rank
from imagenet_mds_train.run.fit import (
    device_of,
    few_classes,
    missing_gpus,
    outputs,
    refuse_other_classes,
    refuse_other_outputs,
    refuse_single_values,
    samples_of,
)
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.fork import Fork
from imagenet_mds_train.run.identity import WAY_ON, refuse_other, run_identity
from imagenet_mds_train.run.job import RankJob, SplitJob
from imagenet_mds_train.run.launch import Ended, Limits, launch
from imagenet_mds_train.run.lead import lead
from imagenet_mds_train.run.microbatch import AUTO, find_largest, recorded_size, with_microbatch_size
from imagenet_mds_train.run.room import refuse_full_disk
from imagenet_mds_train.sweep.curve import Sweep

THREADS_KEY = "threads_per_rank"
"""The key of a deterministic run's identity."""

_REPLAY_WAY_ON = "Pass the dataset, and the OMP_NUM_THREADS if any, that it was started with"


@dataclass(frozen=True)
class Start:
    """A run that is ready to start or to continue. `warnings` are for the person who starts it."""

    config: TrainConfig
    dataset: Dataset
    train: Split
    val: Split | None
    """None where the run never validates."""

    run: RunFolder
    checkpoint: CheckpointRecord | None
    warnings: tuple[str, ...]
    identity: dict[str, Any]
    """What must not change within the run."""
    fork: Fork | None = None
    experiment: str | None = None
    """The group of runs that this one is of, if any."""
    sweep: Sweep | None = None
    """The learning rates to try; None for a run."""
    nodes: Nodes | None = None
    """The machines that train; None for this one alone."""

    @classmethod
    def prepare(
        cls,
        config: TrainConfig,
        dataset: Dataset,
        run: RunFolder,
        fork: Fork | None = None,
        experiment: str | None = None,
        *,
        planned: bool = False,
        sweep: Sweep | None = None,
        replayed: CheckpointRecord | None = None,
        nodes: Nodes | None = None,
    ) -> "Start":
        """Look at the dataset and the run's folder, and refuse what cannot work. Nothing is written.

        Args:
            config: the run's.
            dataset: what to train on.
            run: the run's folder.
            fork: the checkpoint whose weights the run starts from; None to draw them, or as the run was started.
            experiment: the group of runs that this one is of, if any.
            planned: whether it is only planned here, for a machine with the GPUs that it needs.
            sweep: the learning rates to try, in a run that saves nothing; None for a run.
            replayed: the run's checkpoint after which some batches are trained again and nothing is saved; None to
                continue from the newest.
            nodes: the machines that train; None for this one alone.

        Raises:
            UserError: no dataset, splits that do not fit together, too few images or GPUs, too small a disk, a run of
                another dataset, recipe or start.
            WorldError: the run's checkpoints are broken.
        """
        before = run.read_identity()
        if config.system.device_microbatch_size == AUTO and (before or device_of(config) == "cpu"):
            config = with_microbatch_size(config, recorded_size(before) if before else None)
        train = dataset.split("train")
        val = dataset.split("val") if config.evaluation.every_epochs else None
        refuse_other_outputs(config, train)
        if val:
            refuse_other_classes(dataset, train, val)
        refuse_subset(config, dataset.location, train.info)
        samples = samples_of(config, train)
        if samples < config.global_batch_size:
            raise UserError(
                f"{samples:,} training images do not fill one batch of global_batch_size={config.global_batch_size}: "
                f"pass a smaller one"
            )
        refuse_single_values(config)
        ranks_here = nodes.ranks_here(config.ranks) if nodes else config.ranks
        without_gpus = missing_gpus(config, ranks_here)
        if without_gpus and not planned:
            raise UserError(without_gpus)
        run.refuse_bare_checkpoints()
        if fork:
            fork.refuse_misfit(config, train.info.classes_fingerprint)
        identity = run_identity(config, train, val)
        if config.system.deterministic and device_of(config) == "cpu" and (before is None or THREADS_KEY in before):
            # Sums depend on how they are split over threads. A continued run keeps its number on any machine.
            identity[THREADS_KEY] = threads_per_rank(ranks_here, (before or {}).get(THREADS_KEY))
        # A run that was started from another one's weights keeps that, if it is continued without saying so again.
        if begun_from := fork.identity() if fork else (before or {}).get("start"):
            identity["start"] = begun_from
        way_on = _REPLAY_WAY_ON if replayed else WAY_ON
        refuse_other(run.path, before, identity, way_on)
        checkpoint, warnings = replayed, list[str]()
        if replayed is None and run.read_result() is None:
            checkpoint, warnings = run.newest_checkpoint()
        if checkpoint is not None:
            refuse_other(run.checkpoints.location_of(checkpoint), checkpoint.identity, identity, way_on)
        elif begun_from and fork is None and run.read_result() is None:
            raise UserError(
                f"{run.path} starts from the weights of a file: pass its --from-checkpoint or --pretrained again"
            )
        if run.read_result() is None and sweep is None and replayed is None:
            batches = samples // config.global_batch_size * config.schedule.epochs
            refuse_full_disk(config, outputs(config, train), run, batches)
        of_dataset = [train.warning] if train.warning else []
        few = few_classes(train)
        said = (*of_dataset, *few, *warnings, *([without_gpus] if without_gpus else []))
        return cls(config, dataset, train, val, run, checkpoint, said, identity, fork, experiment, sweep, nodes)

    @property
    def ranks_here(self) -> int:
        """The ranks of this machine."""
        return self.nodes.ranks_here(self.config.ranks) if self.nodes else self.config.ranks

    @property
    def on_cpu(self) -> bool:
        """Whether the ranks compute on the processor."""
        return device_of(self.config) == "cpu"

    @property
    def train_samples(self) -> int:
        """Training images, subset applied."""
        return samples_of(self.config, self.train)

    @property
    def val_samples(self) -> int:
        """Validation images, subset applied; 0 without validation."""
        samples = self.val.info.samples if self.val else 0
        return min(self.config.evaluation.subset or samples, samples)

    @property
    def classes(self) -> list[str]:
        """The classes in the order of their numbers; wnids where they are known."""
        known = self.train.info.classes
        return list(known) if known else [str(number) for number in range(outputs(self.config, self.train))]

    @property
    def batches_per_epoch(self) -> int:
        """Optimizer steps of an epoch. Images that do not fill a last batch are left out of that epoch."""
        return self.train_samples // self.config.global_batch_size

    @property
    def has_microbatch_to_find(self) -> bool:
        """Whether the largest microbatch that fits the GPU is still to be found."""
        return self.config.system.device_microbatch_size == AUTO

    def with_microbatch_found(self) -> "Start":
        """This start with the largest microbatch that fits the GPU, which is part of its identity, where the
        configuration has `auto`; a GPU trains for some seconds to find it.

        Raises:
            UserError: not even one image fits.
            WorldError: the search failed.
        """
        if not self.has_microbatch_to_find:
            return self
        config = with_microbatch_size(self.config, find_largest(self.config, len(self.classes)))
        return replace(self, config=config, identity=self.identity | {"recipe": config.what_is_fixed()})

    def record(self) -> None:
        """Record the run, which keeps its identity from now on. Lock it first, see `RunFolder.lock`.

        Raises:
            OSError: the run's folder cannot be written.
        """
        forked_from = str(self.fork.checkpoint) if self.fork else None
        self.run.create(self.config.model_dump(mode="json"), self.identity, forked_from)
        self.run.checkpoints.discard_after(self.checkpoint)

    def shards(self) -> list[tuple[Split, list[ShardInfo]]]:
        """The shards that the run reads, of each split."""
        val = [(self.val, self.val.info.prefix(self.val_samples))] if self.val else []
        return [(self.train, self.train.info.prefix(self.train_samples)), *val]

    def verify_shards(self, on_shard: Callable[[ShardInfo], None] = lambda shard: None) -> list[str]:
        """Compare the shards to be read that are on this machine with the manifest. Those unchanged since they were
        last compared are not read again.

        Args:
            on_shard: called after each shard that was read.

        Returns:
            A line for each fetched shard that was broken. It will be fetched again.

        Raises:
            WorldError: a shard is broken; the message names it, with the command that repairs it.
        """
        ledger, warnings = VerifiedFiles(self.run.path / "verified.json"), []
        for split, shards in self.shards():
            warnings += split.verify(shards, usable_processors(), on_shard, ledger)
        ledger.save()
        return warnings

    def launch(
        self,
        lock: int | None = None,
        until_batch: int | None = None,
        generation: int = 0,
        leader: Leader | None = None,
    ) -> Ended:
        """Start the ranks and wait for them.

        Args:
            lock: the descriptor of the run's lock.
            until_batch: the batch to end after, with a validation of one batch if no epoch ended before; None to train
                to the end.
            generation: of the lease of a run in S3.
            leader: waits for the other nodes and has them start their ranks; None for this machine alone.

        Returns:
            How they ended.

        Raises:
            UserError: the cache's limit or disk is too small; another node refuses the job.
            WorldError, OSError: the cache cannot be written, or the dataset not read; another node does not come.
        """
        for split, shards in self.shards():
            split.shard_cache.prepare(shards)  # ranks expect the index in the cache
        path = self.run.path / "job.json"
        job = self.job(until_batch, generation)
        job.write(path)

        def log_notice(notice: Notice, batch: int | None) -> None:
            if self.sweep is None:
                with contextlib.suppress(OSError):  # the run saves and stops without the line
                    self._log("notice", job.attempt, batch, kind=notice.kind, text=notice.text)

        peers = None
        if leader:
            try:
                peers = lead(leader, job, self.checkpoint.batch if self.checkpoint else 0)
            except Interrupted:
                return Ended(EXIT_STOPPED)
        ended = launch(
            self.ranks_here,
            path,
            self.run.path,
            lock,
            threads=self.threads_per_rank,
            kept=self.sweep is None,
            limits=Limits.of(self.config.system),
            may_continue=lambda: bool(self.run.checkpoints.names()),
            on_notice=log_notice,
            peers=peers,
        )
        # What the user has to change is no event of the run, which may not even have a name yet.
        if self.sweep is None and ended.status not in (EXIT_DONE, EXIT_STOPPED, EXIT_USER):
            with contextlib.suppress(OSError):  # a full disk is what may have failed
                self._log("failed", job.attempt, ended.batch, status=ended.status, reason=ended.reason)
        return ended

    def _log(self, event: str, attempt: int, batch: int | None, **values: Any) -> None:
        """Log an event after `batch` finished batches, None if this start has begun none."""
        at = self.checkpoint.batch if batch is None and self.checkpoint else batch or 0
        append_event(self.run.log, event, attempt, batch=at, **values)

    @property
    def threads_per_rank(self) -> int | None:
        """Threads of each rank, where the run's identity has their number."""
        threads: int | None = self.identity.get(THREADS_KEY)
        return threads

    def job(self, until_batch: int | None = None, generation: int = 0) -> RankJob:
        """What the ranks do; see `launch`."""
        starts = [event for event in self.run.events() if event["event"] == "start"]
        return RankJob(
            config=self.config.model_dump(mode="json"),
            run_folder=str(self.run.path),
            train=SplitJob.of(self.train.shard_cache, self.train_samples),
            val=SplitJob.of(self.val.shard_cache, self.val_samples) if self.val else None,
            classes=self.classes,
            identity=self.identity,
            checkpoint=self.run.checkpoints.location_of(self.checkpoint) if self.checkpoint else None,
            attempt=len(starts) + 1,
            device=device_of(self.config),
            weights=str(self.fork.checkpoint) if self.fork and not self.checkpoint else None,
            pretrained=self.fork is not None and self.fork.is_pretrained,
            experiment=self.experiment,
            until_batch=until_batch,
            mirror=self.run.address,
            generation=generation,
            sweep=self.sweep,
        )
