"""The run on the screen: a line every few batches, and after each validation. It exists in the first rank alone."""

import sys
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination

from imagenet_mds_train.loggers.throughput import Interval, batches_per_epoch


class Console(LoggerDestination):
    """Prints to standard error every `every_batches`, and every validation."""

    def __init__(self, *, every_batches: int) -> None:
        self._every_batches = every_batches
        self._interval = Interval()
        self._latest: dict[str, Any] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember metrics for the next line."""
        self._latest |= metrics
        self._interval.add(metrics)

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Start a new interval: a line's speed is that of one epoch."""
        self._interval = Interval()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Print a line if it is due."""
        if state.timestamp.batch.value % self._every_batches:
            return
        in_epoch = f"{state.timestamp.batch_in_epoch.value}/{batches_per_epoch(state)}"
        _say(
            f"epoch {state.timestamp.epoch.value + 1}/{_epochs(state)} batch {in_epoch} "
            f"loss {self._latest['train/loss']:.4f} lr {self._latest['train/next_lr']:.4f} "
            f"{self._interval.images_per_second:,.0f} images/s ({self._interval.waiting_share:.0%} waiting for data)"
        )
        self._interval = Interval()

    def eval_end(self, state: State, logger: Logger) -> None:
        """Print the figures of a validation, and how many images were damaged."""
        self._say_damaged()
        _say(
            f"epoch {state.timestamp.epoch.value}/{_epochs(state)} validation: "
            f"top-1 {self._latest['metrics/val/top1']:.2%}, top-5 {self._latest['metrics/val/top5']:.2%}, "
            f"loss {self._latest['metrics/val/loss']:.4f}"
        )

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Print how many images were damaged if there is no validation to do it."""
        if not state.evaluators:
            self._say_damaged()

    def _say_damaged(self) -> None:
        for name, split in (("loaders/damaged", "training"), ("loaders/damaged_val", "validation")):
            if count := self._latest.get(name):
                _say(f"{count:,} {split} images so far did not decode; they were black and had no weight")


def _epochs(state: State) -> int:
    assert state.max_duration is not None
    return int(state.max_duration.value)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
