"""Keeps the checkpoint of the best validation, `best.pt`, beside those that a run continues from."""

import contextlib
import json
import os
import shutil
from pathlib import Path

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds.storage.atomic import write_json


class BestCheckpoint(Callback):
    """Takes the checkpoint that is saved after a validation that was better than all before. It exists in the first
    rank alone.

    Args:
        folder: of the run.
        checkpoints: where checkpoints are published.
    """

    def __init__(self, folder: Path, checkpoints: Path) -> None:
        self._folder, self._checkpoints = folder, checkpoints
        self._top1: dict[tuple[int, int], float] = {}
        """By the finished batches and epochs that were validated, as long as their checkpoint is not published."""

    def eval_end(self, state: State, logger: Logger) -> None:
        """Remember what was validated."""
        place = state.timestamp.batch.value, state.timestamp.epoch.value
        self._top1[place] = float(state.eval_metric_values["top1"])

    def saved(self, batch: int, epoch: int) -> None:
        """Take a checkpoint that was just published, if it is the best. A disk without room keeps the one before it."""
        top1 = self._top1.get((batch, epoch))
        self._top1 = {place: one for place, one in self._top1.items() if place > (batch, epoch)}
        if top1 is None:
            return
        record = self._folder / "best.json"
        if record.exists() and json.loads(record.read_bytes())["top1"] >= top1:
            return
        partial = self._folder / ".best.pt"
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)
            _link_or_copy(self._checkpoints / f"ep{epoch}-ba{batch}.pt", partial)
            partial.replace(self._folder / "best.pt")
            write_json(record, {"epoch": epoch, "batch": batch, "top1": top1})


def _link_or_copy(source: Path, target: Path) -> None:
    """A second name for a file, which takes no room; a copy where the file system has no such names."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
