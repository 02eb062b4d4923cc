"""Some batches of a run, trained again from one of its checkpoints, to compare their losses. Imports no torch.

The run's folder is only read, and not locked: the run may be in progress, and remove the checkpoint. So the checkpoint
is copied first, into the temporary folder of an attempt, in which the ranks write too.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from imagenet_mds.dataset.access import Dataset, check_available
from imagenet_mds.errors import EXIT_DONE, UserError, WorldError
from imagenet_mds.process.attempt import attempt
from imagenet_mds.words import counted
from imagenet_mds_train.checkpoints.store import CheckpointRecord
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.replay.comparison import LoggedLoss, RunLosses, Verdict
from imagenet_mds_train.run.folder import RunFolder, read_object
from imagenet_mds_train.run.last_job import LastJob
from imagenet_mds_train.run.launch import launch
from imagenet_mds_train.run.start import Start


@dataclass(frozen=True)
class Replay:
    """A replay that is ready to start.

    start: the run, at the checkpoint.
    log: the run's.
    logged: the losses of the log to compare.
    """

    start: Start
    log: RunLosses
    logged: list[LoggedLoss]

    @classmethod
    def prepare(
        cls,
        run: RunFolder,
        dataset: Dataset,
        *,
        batches: int,
        checkpoint: str | None = None,
        ranks: int | None = None,
    ) -> "Replay":
        """Choose the checkpoint and the batches, and refuse what cannot work. Nothing is written.

        Args:
            run: the folder of a run.
            dataset: what it was trained on.
            batches: the batches after the checkpoint, as far as they are logged.
            checkpoint: its name; None for the oldest that logged batches follow.
            ranks: None for those of the attempt that logged the first of the batches last.

        Raises:
            UserError: no such checkpoint, no logged batches after it, another dataset, or as `Start.prepare`.
            WorldError: the run's record is damaged.
        """
        log = RunLosses.of(run.events())
        record = _chosen(run, log, batches, checkpoint)
        logged = log.after(record.batch, batches)
        first = [one for one in logged if one.batch == logged[0].batch]
        by = log.attempts.get(first[-1].attempt)
        values = read_object(run.path / "run.json") or {}
        try:
            config_values, theirs = dict(values["config"]), values["identity"]["dataset"]["train"]
        except (KeyError, TypeError, ValueError):
            raise WorldError(f"{run.location}/run.json is no record of a run: restore it") from None
        # Before what else does not fit, for which a replay has no settings to change.
        if (found := dataset.split("train").info.fingerprint) != theirs:
            raise UserError(
                f"{dataset.location} is not the dataset of {run.location}: its train has the fingerprint {found}, that "
                f"of the run {theirs}. Pass the run's with --data"
            )
        asked = ranks or (by and by.ranks)
        settings = config_values | ({"ranks": asked} if asked else {})
        config = parse_config(settings, f"{run.location}/run.json", ["ranks"] if ranks else [])
        start = Start.prepare(config, dataset, run, replayed=record)
        return cls(start, log, logged)

    @property
    def checkpoint(self) -> CheckpointRecord:
        """The record of the checkpoint."""
        assert self.start.checkpoint is not None
        return self.start.checkpoint

    @property
    def until_batch(self) -> int:
        """The last batch."""
        return self.logged[-1].batch

    def run(self, on_start: Callable[[], None] = lambda: None) -> tuple[int, Verdict | None]:
        """Train the batches and compare their losses.

        Args:
            on_start: called before the ranks start, when the checkpoint proved to be whole.

        Returns:
            The exit status of the ranks; and the verdict, None unless they are done.

        Raises:
            WorldError: the checkpoint or the dataset is damaged.
            UserError: the cache is too small.
            OSError: the temporary folder is too small.
        """
        start, record = self.start, self.checkpoint
        check_available(start.shards()[:1])
        # The folder of an attempt is removed whatever way this process ends; after SIGKILL, by the next start.
        with attempt() as mine:
            folder = RunFolder(mine.temporary / "replay")
            folder.path.mkdir()
            copy = mine.temporary / record.basename
            self._copy(copy)
            job = replace(
                start.job(self.until_batch),
                run_folder=str(folder.path),
                val=None,
                checkpoint=str(copy),
                experiment=None,
                mirror=None,
                replay=True,
            )
            path = folder.path / "job.json"
            job.write(path)
            on_start()
            ended = launch(start.config.ranks, path, folder.path, threads=start.threads_per_rank, kept=False)
            result: dict[str, Any] | None = folder.read_result()
        if ended.status != EXIT_DONE:
            return ended.status, None
        assert result is not None
        return ended.status, Verdict.of(
            self.log,
            self.logged,
            record.batch,
            start.config.ranks,
            result["losses"],
            deterministic=start.config.system.deterministic,
            machine=result["machine"],
        )

    def _copy(self, copy: Path) -> None:
        """Copy the checkpoint, and refuse a copy that is not what its record has."""
        location = self.start.run.checkpoints.location_of(self.checkpoint)
        way_on = "choose another one with --checkpoint"
        fault = self.start.run.checkpoints.fetch(self.checkpoint, copy)
        if fault == "missing":
            raise WorldError(
                f"{location} is missing: {way_on}, or run the same command again if the run goes on, which removes its "
                f"old checkpoints"
            )
        if fault:
            raise WorldError(f"{location} is damaged, {fault}: {way_on}")


def dataset_of(
    run: RunFolder, location: str | None, cache: Path | None = None, limit_bytes: int | None = None
) -> Dataset:
    """The dataset of a replay.

    Args:
        run: the folder of the run.
        location: as the user gave it; None for that of the run's last start, with its cache and its limit.
        cache: the folder of fetched shards, as the user gave it.
        limit_bytes: the room that they may take, as the user gave it.

    Raises:
        UserError: none is given, and the run's is not known or not there.
    """
    if location is not None:
        return Dataset.at(location, cache, limit_bytes)
    job = LastJob.of(run.path)
    if job.dataset is None:
        raise UserError(
            f"{run.location}/job.json does not say which dataset the run was trained on: pass --data DATASET"
        )
    dataset = Dataset.at(job.dataset, cache or job.cache, limit_bytes or job.limit_bytes)
    try:
        dataset.split("train")
    except UserError as error:
        raise UserError(f"the dataset of {run.location} cannot be read ({error}): pass --data DATASET") from None
    return dataset


def _chosen(run: RunFolder, log: RunLosses, batches: int, name: str | None) -> CheckpointRecord:
    """The checkpoint to start from; see `Replay.prepare`."""
    records = run.checkpoints.records()
    if name is not None:
        records = [record for record in records if record.basename == name]
    if not records:
        kept = ", ".join(reversed(run.checkpoints.names()))
        what = f"no checkpoint {name}" if name else "no checkpoint"
        raise UserError(f"{run.location} has {what}: {f'pass one of {kept}' if kept else 'train it for longer'}")
    for record in reversed(records):
        if log.after(record.batch, batches):
            return record
    last = max((one.batch for one in log.losses), default=None)
    logged = "no batch is logged" if last is None else f"the last logged batch is {last:,}"
    later = [one.batch - records[-1].batch for one in log.losses if one.batch > records[-1].batch]
    way_on = f"pass --batches {min(later)}" if later else "train it for longer, or keep more with checkpoint.keep"
    which = ", ".join(record.basename for record in reversed(records))
    raise UserError(
        f"the log of {run.location} has no loss of the {counted(batches, 'batch', 'batches')} after {which}; {logged}: "
        f"{way_on}"
    )
