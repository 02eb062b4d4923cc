"""The run's log: a JSON object a line for programs, a short line for people, from the first rank only."""

import json
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds_train.loggers.loss_guard import _SCALED_PATIENCE_BATCHES, NotFinite


@dataclass
class _Interval:
    """The time from one line to the next: after which batch it began, when, and how long the loader was waited for."""

    after_batch: int = 0
    begun_at: float = field(default_factory=lambda: time.monotonic())
    waited_seconds: float = 0.0


class RunLog(Callback):
    """Writes loss, learning rate and speed every `every_batches`, and every validation.

    Args:
        path: the log; lines are added.
        attempt: which start of the run this is, from 1.
        every_batches: how often in the log.
        print_every_batches: how often on the screen.
        global_batch_size: images a step, for the speed.
    """

    def __init__(
        self, path: Path, *, attempt: int, every_batches: int, print_every_batches: int, global_batch_size: int
    ) -> None:
        self.path = path
        self.attempt = attempt
        self.every_batches = every_batches
        self.print_every_batches = print_every_batches
        self.global_batch_size = global_batch_size
        self._in_log, self._on_screen = _Interval(), _Interval()
        self._asked_at = time.monotonic()
        self.counts: Callable[[], dict[str, int]] = dict
        """What this rank's loader has counted of its samples."""

        self.not_finite_batches = 0
        """Losses in a row that are no numbers, up to now."""

    def write(self, event: str, **values: Any) -> None:
        """Add a line to the log. Flushed at once, so that a killed run loses none; call it in the first rank only."""
        line = {"event": event, "attempt": self.attempt, "time": round(time.time(), 3)} | values
        known = {name: _finite(value) for name, value in line.items()}
        with open(self.path, "ab+") as file:
            # A killed start may have left half a line; the next event must not join it.
            if file.tell() and not self._ends_well(file):
                file.write(b"\n")
            file.write(json.dumps(known, allow_nan=False).encode() + b"\n")

    @staticmethod
    def _ends_well(file: BinaryIO) -> bool:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"

    def fit_start(self, state: State, logger: Logger) -> None:
        """Say where the run starts."""
        if dist.get_global_rank() == 0:
            self.write("start", batch=state.timestamp.batch.value, ranks=dist.get_world_size())

    def epoch_start(self, state: State, logger: Logger) -> None:
        """The time between epochs (validation, a checkpoint) is no training speed."""
        batch = state.timestamp.batch.value
        self._in_log, self._on_screen = _Interval(batch), _Interval(batch)

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """The next batch is asked for. A copy to the device that is still under way is not waited for here."""
        self._asked_at = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """It is there."""
        waited_seconds = time.monotonic() - self._asked_at
        self._in_log.waited_seconds += waited_seconds
        self._on_screen.waited_seconds += waited_seconds

    def batch_end(self, state: State, logger: Logger) -> None:
        """A line when it is time."""
        batch = state.timestamp.batch.value
        assert isinstance(state.total_loss_dict, dict)
        loss = float(state.total_loss_dict["loss/train/total"])
        self._watch(loss, batch, scaled=state.scaler is not None and state.scaler.is_enabled())
        in_log, on_screen = batch % self.every_batches == 0, batch % self.print_every_batches == 0
        if dist.get_global_rank() or not (in_log or on_screen):
            return
        # The schedulers step before this event, so what they hold is the next batch's rate.
        lr = state.optimizers[0].param_groups[0]["lr"]
        epoch = state.timestamp.epoch.value
        if in_log:
            rate, waiting = self._speed(self._in_log, batch)
            self._in_log = _Interval(batch)
            speed = {"images_per_second": round(rate, 1), "waiting_for_data": round(waiting, 3)}
            self.write("batch", batch=batch, epoch=epoch, loss=loss, next_lr=lr, **speed)
        if on_screen:
            rate, waiting = self._speed(self._on_screen, batch)
            self._on_screen = _Interval(batch)
            in_epoch = f"{state.timestamp.batch_in_epoch.value}/{batches_per_epoch(state)}"
            self._say(
                f"epoch {epoch + 1}/{_epochs(state)} batch {in_epoch} loss {loss:.4f} lr {lr:.4f} {rate:,.0f} images/s "
                f"({waiting:.0%} waiting for data)"
            )

    def _speed(self, interval: "_Interval", batch: int) -> tuple[float, float]:
        """Images a second since the interval began, and which share of it the data were waited for."""
        seconds = max(time.monotonic() - interval.begun_at, 1e-9)
        rate = (batch - interval.after_batch) * self.global_batch_size / seconds
        return rate, min(1.0, interval.waited_seconds / seconds)

    def _watch(self, loss: float, batch: int, *, scaled: bool) -> None:
        """End a run whose loss is no number, in every rank alike: the loss is the mean over all of them."""
        self.not_finite_batches = 0 if math.isfinite(loss) else self.not_finite_batches + 1
        if self.not_finite_batches > (_SCALED_PATIENCE_BATCHES if scaled else 0):
            since = batch - self.not_finite_batches + 1
            raise NotFinite(
                f"the loss is {loss} since batch {since}: the learning rate is too high, or the data are broken. "
                f"Start a new run (--run-name) with a smaller optimizer.lr or a longer warm-up; "
                f"the last checkpoint is from before"
            )

    def eval_end(self, state: State, logger: Logger) -> None:
        """The figures of a validation, and what the loaders of all ranks have counted since the start."""
        counts = {name: _over_ranks(count, state) for name, count in self.counts().items()}
        if dist.get_global_rank():
            return
        values = {name: float(value) for name, value in state.eval_metric_values.items()} | counts
        for name, what in (("damaged", "training"), ("damaged_val", "validation")):
            if counts.get(name):
                self._say(f"{counts[name]:,} {what} images did not decode and were black, without weight, so far")
        self.write("eval", batch=state.timestamp.batch.value, epoch=state.timestamp.epoch.value, **values)
        self._say(
            f"epoch {state.timestamp.epoch.value}/{_epochs(state)} validation: top-1 {values['top1']:.2%}, "
            f"top-5 {values['top5']:.2%}, loss {values['loss']:.4f}"
        )

    def _say(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)


def _over_ranks(count: int, state: State) -> int:
    summed = state.device.tensor_to_device(torch.tensor([count]))
    dist.all_reduce(summed, reduce_operation="SUM")
    return int(summed)


def _epochs(state: State) -> int:
    assert state.max_duration is not None
    return int(state.max_duration.value)


def _finite(value: Any) -> Any:
    """None in place of a NaN or an infinity, which are no JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def batches_per_epoch(state: State) -> int:
    """Steps of an epoch."""
    assert state.dataloader_len is not None
    return int(state.dataloader_len.value)
