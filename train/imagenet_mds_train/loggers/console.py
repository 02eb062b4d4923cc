"""The run on the screen: a line every few batches, and after each validation. On a terminal, a live line between them.
It exists in the first rank alone."""

import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination

from imagenet_mds.words import counted, duration
from imagenet_mds_train.loggers.throughput import Interval, batches_per_epoch

_LIVE_SECONDS = 0.5
"""Between changes of the live line."""

_CLEAR_LINE = "\r\x1b[K"


@dataclass(frozen=True)
class Outlook:
    """What is left of a run, and what it costs.

    work_left: the images that are left after a number of batches, those of other sizes by their pixels.
    dollars_per_hour: the machine's price, None if it is not known.
    seconds_before: time of the run's earlier starts.
    """

    work_left: Callable[[int], float]
    dollars_per_hour: float | None = None
    seconds_before: float = 0.0

    def in_words(self, batch: int, images_per_second: float, seconds: float) -> str:
        """What is left, and the dollars so far.

        Args:
            batch: finished batches.
            images_per_second: the present rate.
            seconds: since this start.
        """
        left = f", {duration(self.work_left(batch) / max(images_per_second, 1e-9) / 3600)} left"
        if self.dollars_per_hour is None:
            return left
        return f"{left}, ${self.dollars_per_hour * (self.seconds_before + seconds) / 3600:,.2f} so far"


class Console(LoggerDestination):
    """Prints to standard error every `every_batches`, and every validation.

    Args:
        every_batches: batches between lines.
        epochs: of the run.
        outlook: what is left of the run.
    """

    def __init__(self, *, every_batches: int, epochs: int, outlook: Outlook) -> None:
        self._every_batches = every_batches
        self._epochs = epochs
        self._outlook = outlook
        self._interval = Interval()
        self._latest: dict[str, Any] = {}
        self._started = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._live_at = 0.0

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember metrics for the next line."""
        self._latest |= metrics
        self._interval.add(metrics)

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Start a new interval: a line's speed is that of one epoch."""
        self._interval = Interval()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print a line if it is due, else change the live line."""
        now = time.monotonic()
        if state.timestamp.batch.value % self._every_batches == 0:
            self._say(self._line(state, now))
            self._interval = Interval()
        elif self._is_terminal and now - self._live_at > _LIVE_SECONDS:
            self._live_at = now
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80
            print(_CLEAR_LINE + self._line(state, now)[: width - 1], end="", file=sys.stderr, flush=True)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Print the figures of a validation, and how many images were damaged. A dry run validates on one batch, which
        is said instead of the epoch."""
        self._say_damaged()
        batches, whole = batches_per_epoch(state), len(state.dataloader)
        what = (
            f"epoch {state.timestamp.epoch.value}/{self._epochs} validation"
            if batches == whole
            else f"validation of {batches} of {counted(whole, 'batch', 'batches')}"
        )
        self._say(
            f"{what}: top-1 {self._latest['metrics/val/top1']:.2%}, top-5 {self._latest['metrics/val/top5']:.2%}, "
            f"loss {self._latest['metrics/val/loss']:.4f}"
        )

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Print how many images were damaged if there is no validation to do it."""
        if not state.evaluators:
            self._say_damaged()

    def _line(self, state: State, now: float) -> str:
        batch, rate = state.timestamp.batch.value, self._interval.images_per_second
        in_epoch = f"{state.timestamp.batch_in_epoch.value}/{batches_per_epoch(state)}"
        top1 = f" top-1 {self._latest['train/top1']:.0%}" if "train/top1" in self._latest else ""
        return (
            f"epoch {state.timestamp.epoch.value + 1}/{self._epochs} batch {in_epoch} "
            f"loss {float(self._latest['train/loss']):.4f}{top1} lr {self._latest['train/next_lr']:.4f} "
            f"{rate:,.0f} images/s ({self._interval.waiting_share:.0%} waiting for data)"
            f"{self._outlook.in_words(batch, rate, now - self._started)}"
        )

    def _say_damaged(self) -> None:
        for name, split in (("loaders/damaged", "training"), ("loaders/damaged_val", "validation")):
            if count := self._latest.get(name):
                self._say(f"{count:,} {split} images so far did not decode; they were black and had no weight")

    def _say(self, text: str) -> None:
        print(f"{_CLEAR_LINE if self._is_terminal else ''}{text}", file=sys.stderr, flush=True)
