"""A run killed twice, at each pair of neighbouring moments around an epoch's end, against the run never stopped: every
loss, every weight, every draw.

Each start is a process forked from this one, because one that imports Composer itself takes ten seconds.
"""

import json
import os
import shutil
import signal
import traceback
import warnings
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.job import RankJob
from imagenet_mds_train.run.start import Start

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from composer.core import Callback, Event, State
    from composer.loggers import Logger
    from composer.utils.collect_env import get_composer_env_dict

    from imagenet_mds_train import rank
    from imagenet_mds_train.data.stream import own_resources
    from imagenet_mds_train.trainer import build_trainer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # what torch and Composer deprecate, as in a rank; of the fork
]

BATCHES_PER_EPOCH = 3
RECIPE = (
    "global_batch_size=16",
    f"data={{subset: {16 * BATCHES_PER_EPOCH}, workers_per_rank: 0, verify_shards: false}}",
    "augment={size_px: 16}",
    "evaluation={resize_px: 18, crop_px: 16, device_batch_size: 32, workers_per_rank: 0}",
    "schedule={epochs: 2, warmup_epochs: 0}",
    "optimizer.lr=0.05",
    "algorithms={mixup: {alpha: 0.2}, cutmix: {alpha: 1.0}, ema: {half_life_batches: 3}}",
    "logging.every_batches=1",
)
MOMENTS = {
    "before the last batch is saved": (Event.BATCH_CHECKPOINT, BATCHES_PER_EPOCH, "first"),
    "before its record is written": ("record", BATCHES_PER_EPOCH, ""),
    "after the last batch is saved": (Event.BATCH_CHECKPOINT, BATCHES_PER_EPOCH, "last"),
    "within the validation": (Event.EVAL_BATCH_END, BATCHES_PER_EPOCH, "last"),
    "after the validation": (Event.EVAL_END, BATCHES_PER_EPOCH, "last"),
    "before the epoch is saved": (Event.EPOCH_CHECKPOINT, BATCHES_PER_EPOCH, "first"),
    "after the epoch is saved": (Event.EPOCH_CHECKPOINT, BATCHES_PER_EPOCH, "last"),
    "before the first batch of the next epoch": (Event.AFTER_DATALOADER, BATCHES_PER_EPOCH, "first"),
    "after it": (Event.BATCH_END, BATCHES_PER_EPOCH + 1, "last"),
}
"""The event, the batches that are finished then, and whether the kill comes before or after what else runs at it."""


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


def start(dataset: Path, folder: Path, moment: str | None) -> bool:
    """Start or continue the run in a process of its own, killed at a moment if it comes; return whether it ended."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            with own_resources():
                status = train(dataset, folder, moment)
        except BaseException:  # whatever it is, this process must not go on as pytest
            traceback.print_exc()
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL), status
    return status == 0


def train(dataset: Path, folder: Path, moment: str | None) -> int:
    """Run the launcher and the one rank in this process, killed at a moment; return the exit status."""
    event, batch, place = MOMENTS[moment] if moment else (None, 0, "")
    killers = [Killer(event, batch)] if isinstance(event, Event) else []

    def build(*arguments: Any, callbacks: list[Callback], **options: Any) -> Any:
        ordered = [*killers, *callbacks] if place == "first" else [*callbacks, *killers]
        return build_trainer(*arguments, callbacks=ordered, **options)

    def create(self: LocalStorage, name: str, data: bytes) -> None:
        if event == "record" and name == f"ep0-ba{batch}.json":
            kill()
        write(self, name, data)

    write = LocalStorage.create
    with (
        patch.object(rank, "build_trainer", build),
        patch.object(LocalStorage, "create", create),
        patch("imagenet_mds_train.run.start.launch", lambda ranks, job, *rest, **options: rank.run(RankJob.read(job))),
    ):
        ready = Start.prepare(load_config("demo", RECIPE), Dataset.at(str(dataset)), RunFolder(folder))
        ready.record()
        return ready.launch()


def end_of(folder: Path) -> tuple[dict[int, float], dict[str, Any], list[float]]:
    """The last loss of each batch, the last checkpoint's state, and the figures of the last validation."""
    events = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = {event["batch"]: event["loss"] for event in events if event["event"] == "batch"}
    saved = torch.load(folder / "checkpoints" / f"ep2-ba{2 * BATCHES_PER_EPOCH}.pt", weights_only=False)
    figures = [[event["top1"], event["loss"]] for event in events if event["event"] == "eval"]
    return losses, saved, figures[-1]


@pytest.fixture(scope="module")
def whole(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run never stopped."""
    get_composer_env_dict()  # takes more than a second in each process that does not inherit the answer
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert start(dataset, folder, None)
    return folder


@pytest.fixture(scope="module")
def killed_once(dataset: Path, whole: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The run killed at each moment."""
    folders = {moment: tmp_path_factory.mktemp("once") / "run" for moment in MOMENTS}
    assert not any(start(dataset, folder, moment) for moment, folder in folders.items())
    return folders


def neighbours() -> list[tuple[str, str]]:
    """Pairs of moments that follow each other, in both orders, and each moment with itself."""
    names = list(MOMENTS)
    return [(one, other) for one, other in product(names, names) if abs(names.index(one) - names.index(other)) <= 1]


@pytest.mark.parametrize(("one", "other"), neighbours())
def test_a_run_killed_twice_is_the_run_never_stopped(
    dataset: Path, whole: Path, killed_once: dict[str, Path], tmp_path: Path, one: str, other: str
) -> None:
    folder = Path(shutil.copytree(killed_once[one], tmp_path / "run"))
    # A moment that the first start has passed, and saved, does not come again.
    ended = start(dataset, folder, other) or start(dataset, folder, None)
    assert ended
    losses, saved, figures = end_of(folder)
    expected_losses, expected, expected_figures = end_of(whole)
    assert (losses, figures) == (expected_losses, expected_figures)
    for name, tensor in expected["state"]["model"].items():
        assert torch.equal(saved["state"]["model"][name], tensor), name
    for name, tensor in dict(expected["state"]["algorithms"])["EMA"]["ema_model"]["named_parameters_dict"].items():
        found = dict(saved["state"]["algorithms"])["EMA"]["ema_model"]["named_parameters_dict"][name]
        assert torch.equal(found, tensor), name
    assert torch.equal(saved["rng"][0]["torch"], expected["rng"][0]["torch"])
    assert str(saved["rng"][0]["numpy"]) == str(expected["rng"][0]["numpy"])
