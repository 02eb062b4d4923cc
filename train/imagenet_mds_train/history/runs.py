"""The runs below a folder, or an address in S3, each as its own files describe it. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from imagenet_mds.errors import CommandError, UserError, WorldError
from imagenet_mds.process.locks import is_locked
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds_train.config.load import parse_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.history.events import History, history_of, read_events
from imagenet_mds_train.run.find import find_run_folder
from imagenet_mds_train.run.folder import RunFolder, read_object
from imagenet_mds_train.run.last_job import LastJob
from imagenet_mds_train.run.mirror import RunMirror

State = Literal["finished", "running", "stopped", "killed or failed"]
"""Finished: there is a result. Running: a process of this machine holds the lock. Stopped: the log ends with it. Killed
or failed: none of these, and the log does not say which."""


@dataclass(frozen=True)
class Run:
    """A run as its folder has it.

    path: the folder, or that of a copy of its small files.
    location: the run as a user types it.
    identity: what must not change within the run.
    forked_from: the checkpoint whose weights it started from, if any.
    checkpoint: the name of the newest one that is recorded and there; its content is not read.
    dataset: the location that the last start was given; None where its job is not there.
    experiment: the group of runs that this one is of, if any.
    """

    path: Path
    location: str
    state: State
    config: TrainConfig
    identity: dict[str, Any]
    forked_from: str | None
    history: History
    checkpoint: str | None
    dataset: str | None = None
    experiment: str | None = None

    @classmethod
    def read(cls, path: Path) -> "Run":
        """Read a run's folder; see `of`."""
        return cls.of(RunFolder(path))

    @classmethod
    def of(cls, folder: RunFolder) -> "Run":
        """Read a run. Keys that its configuration lacks have their defaults.

        Raises:
            UserError: a later version of the program wrote it, or its configuration is none of this version's.
            WorldError: a file is damaged.
            OSError: a file cannot be read.
        """
        path = folder.path
        # A run in S3 is locked in the working copy of the machine that it runs on.
        locked = RunMirror.at(folder.address).folder.path if folder.address else path
        record = read_object(path / "run.json")
        try:
            identity = folder.read_identity()
            if not isinstance(record, dict) or not isinstance(identity, dict) or not isinstance(record["config"], dict):
                raise TypeError
        except (KeyError, TypeError, AttributeError):
            raise WorldError(f"{path}/run.json is no record of a run") from None
        config = parse_config(record["config"], f"{path}/run.json")
        events, others = read_events(folder.log)
        if others and not events:
            raise WorldError(f"{folder.log} is damaged: none of its {others:,} lines is an event")
        state: State
        if folder.read_result() is not None:
            state = "finished"
        elif locked.is_dir() and is_locked(locked):
            state = "running"
        else:
            state = "stopped" if events and events[-1]["event"] == "stopped" else "killed or failed"
        store = folder.checkpoints
        there = (name for name in store.names() if store.storage.size_bytes(name) is not None)
        history, forked_from = history_of(events), record.get("forked_from")
        job = LastJob.of(path)
        return cls(
            path,
            folder.location,
            state,
            config,
            identity,
            forked_from,
            history,
            next(there, None),
            job.dataset,
            job.experiment,
        )

    @property
    def name(self) -> str:
        """The name of the run's folder, of `.` and `..` too."""
        return self.path.resolve().name if self.path.name in ("", "..") else self.path.name

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return self.config.schedule.epochs

    @property
    def dollars(self) -> float | None:
        """What the hours of the run cost; None without `logging.dollars_per_hour`."""
        price = self.config.logging.dollars_per_hour
        return self.history.hours * price if price else None

    def figures(self) -> dict[str, Any]:
        """The run's figures as plain values; None for those that its log does not have."""
        history, best = self.history, self.history.best
        last = history.validations[-1] if history.validations else None
        losses = [point.loss for point in history.points if point.loss is not None]
        return {
            "state": self.state,
            "epoch": history.epoch,
            "epochs": self.epochs,
            "batch": history.batch,
            "top1": last and last.top1,
            "top5": last and last.top5,
            "loss": last and last.loss,
            "best_top1": best and best.top1,
            "best_epoch": best and best.epoch,
            "train_loss": losses[-1] if losses else None,
            "images_per_second": history.images_per_second,
            "waiting_for_data": history.waiting_for_data,
            "hours": history.hours,
            "starts": len(history.starts),
            "checkpoint": self.checkpoint,
        }

    def ends(self) -> list[str]:
        """How each start ended, as far as the log and the lock show."""
        starts = self.history.starts
        current = {"running": "running", "finished": "done"}.get(self.state, "killed or failed")
        return [
            start.end or (current if place == len(starts) - 1 else "killed or failed")
            for place, start in enumerate(starts)
        ]


def find_run(location: str) -> Run:
    """The run that a user means: its folder, its name within `runs`, or its address in S3.

    Raises:
        UserError: there is no run, or this version cannot read it.
        WorldError: its files are damaged.
        OSError: they cannot be read.
    """
    return Run.of(find_run_folder(location))


def list_runs_in_s3(root: str) -> tuple[list[Run], list[str]]:
    """The runs at an address, as `list_runs` finds those of a folder.

    Raises:
        UserError: S3 refuses.
        OSError: it does not answer.
    """
    storage = open_storage(root)
    found = [storage] if _is_run_in_s3(storage) else []
    for name in [] if found else storage.list_names():
        child = storage.child(name)
        within = [child] if _is_run_in_s3(child) else [child.child(one) for one in child.list_names()]
        found += [one for one in within if one is child or _is_run_in_s3(one)]
    runs, notes = [], []
    for one in found:
        try:
            runs.append(find_run(one.location))
        except CommandError as error:
            notes.append(f"{one.location} is left out: {error}")
    return runs, notes


def _is_run_in_s3(storage: Storage) -> bool:
    return storage.size_bytes("run.json") is not None


def list_runs(root: Path) -> tuple[list[Run], list[str]]:
    """The runs of a folder, ordered by name: itself, in it, or in a folder in it.

    Args:
        root: the folder that `train --save` was given, or the folder of a run.

    Returns:
        The runs, and a line for each folder that is left out.

    Raises:
        UserError: there is no such folder, or it cannot be read.
    """
    if not root.is_dir():
        what = "is a file" if root.exists() else "does not exist"
        raise UserError(f"{root} {what}: pass the folder of runs that `imagenet-mds train --save` was given")
    try:
        found, notes = _folders(root)
    except OSError as error:
        raise UserError(f"{root} cannot be read: {error.strerror}") from None
    runs = []
    for path in found:
        try:
            runs.append(Run.read(path))
        except CommandError as error:
            notes.append(f"{path} is left out: {error}")
        except OSError as error:
            notes.append(f"{path} is left out: {error.filename or path}: {error.strerror}")
    return runs, notes


def _folders(root: Path) -> tuple[list[Path], list[str]]:
    """The folders of runs, and a line for each other folder beside them."""
    if _is_run(root):
        return [root], []
    found: list[Path] = []
    without: list[Path] = []
    notes: list[str] = []
    for folder in _subfolders(root):
        if _is_run(folder):
            found.append(folder)
            continue
        try:
            within = _subfolders(folder)
        except OSError as error:
            notes.append(f"{folder} is left out: {error.strerror}")
            continue
        runs = [one for one in within if _is_run(one)]
        found += runs
        without += [one for one in within if one not in runs] if runs else [folder]
    if found:
        notes += [f"{one} is left out: it holds no run" for one in without]
    return found, notes


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").is_file()


def _subfolders(folder: Path) -> list[Path]:
    return sorted(one for one in folder.iterdir() if not one.name.startswith(".") and one.is_dir())
