"""Runs of one rank in processes forked from this one, because one that imports Composer itself takes ten seconds."""

import json
import os
import signal
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.job import RankJob
from imagenet_mds_train.run.launch import Ended
from imagenet_mds_train.run.start import Start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.core import Callback, Event, State
    from composer.loggers import Logger
    from composer.utils.collect_env import get_composer_env_dict

    from imagenet_mds_train import rank
    from imagenet_mds_train.data.stream import own_resources
    from imagenet_mds_train.trainer import build_trainer


@dataclass(frozen=True)
class Moment:
    """When a run is killed.

    event: Composer's, or the record of the checkpoint of a batch.
    batch: how many batches are finished then.
    place: whether the kill comes before or after what else runs at the event.
    """

    event: Event | Literal["record"]
    batch: int
    place: Literal["first", "last"] = "last"


class Killer(Callback):
    """Kills the run at an event of a batch."""

    def __init__(self, event: Event, batch: int) -> None:
        self.event, self.batch = event, batch

    def run_event(self, event: Event, state: State, logger: Logger) -> None:
        """Kill if this is the moment."""
        if event == self.event and state.timestamp.batch.value == self.batch:
            kill()


def kill() -> None:
    """End this process as a machine that is taken away does."""
    os.kill(os.getpid(), signal.SIGKILL)


def start(dataset: Path, folder: Path, recipe: Sequence[str], moment: Moment | None = None) -> bool:
    """Start or continue a run of the demo's configuration with a recipe in a process of its own, killed at a moment if
    it comes; return whether it ended."""
    get_composer_env_dict()  # takes a second once in a process, and forks inherit the answer
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with own_resources():
                status = _train(dataset, folder, recipe, moment)
        except BaseException:  # whatever it is, this process must not go on as pytest
            traceback.print_exc()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def _train(dataset: Path, folder: Path, recipe: Sequence[str], moment: Moment | None) -> int:
    """Run the launcher and the one rank in this process, killed at a moment; return the exit status."""
    killers = [Killer(moment.event, moment.batch)] if moment and isinstance(moment.event, Event) else []

    def build(*arguments: Any, callbacks: list[Callback], **options: Any) -> Any:
        ordered = [*killers, *callbacks] if moment and moment.place == "first" else [*callbacks, *killers]
        return build_trainer(*arguments, callbacks=ordered, **options)

    def create(self: LocalStorage, name: str, data: bytes) -> None:
        if moment and moment.event == "record" and name == f"ep0-ba{moment.batch}.json":
            kill()
        write(self, name, data)

    write = LocalStorage.create
    with (
        patch.object(rank, "build_trainer", build),
        patch.object(LocalStorage, "create", create),
        patch("imagenet_mds_train.run.start.launch", _run_one_rank),
    ):
        ready = Start.prepare(load_config("demo", recipe), Dataset.at(str(dataset)), RunFolder(folder))
        ready.record()
        return ready.launch().status


def _run_one_rank(ranks: int, job: Path, *rest: object, **options: object) -> Ended:
    """Run the rank in this process; takes the place of the launcher."""
    return Ended(rank.run(RankJob.read(job)))


@dataclass(frozen=True)
class End:
    """What a run left: the last loss of each batch, the figures of its last validation, and its last checkpoint."""

    losses: dict[int, float]
    figures: list[float]
    saved: dict[str, Any]

    @classmethod
    def of(cls, folder: Path) -> "End":
        """Read a run's folder."""
        events = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        losses = {event["batch"]: event["loss"] for event in events if event["event"] == "batch"}
        figures = [[event["top1"], event["loss"]] for event in events if event["event"] == "eval"]
        newest = max((folder / "checkpoints").glob("*.pt"), key=lambda path: int(path.stem.split("-ba")[1]))
        return cls(losses, figures[-1], torch.load(newest, weights_only=False))

    def assert_same(self, other: "End") -> None:
        """Every loss, every weight, every average, every draw to come is equal, bit for bit."""
        assert (self.losses, self.figures) == (other.losses, other.figures)
        for part in ("model", "optimizers"):
            assert_equal(self.saved["state"][part], other.saved["state"][part], part)
        assert_equal(dict(self.saved["state"]["algorithms"]), dict(other.saved["state"]["algorithms"]), "algorithms")
        assert torch.equal(self.saved["rng"][0]["torch"], other.saved["rng"][0]["torch"])
        assert str(self.saved["rng"][0]["numpy"]) == str(other.saved["rng"][0]["numpy"])


def assert_equal(one: Any, other: Any, where: str) -> None:
    """Equal trees of tensors and plain values."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one.keys() - {"repr"}:  # Composer's, with an address of the memory
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, pair in enumerate(zip(one, other, strict=True)):
            assert_equal(*pair, f"{where}[{place}]")
    else:
        assert one == other, where
