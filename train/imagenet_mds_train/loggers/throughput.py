"""Measures what a run reports, once, and logs it through Composer's logger.

    train/loss             mean over the ranks, a tensor (1,) of the device, which only its readers wait for
    train/next_lr          learning rate of the next batch
    train/images           images of the batch
    train/batch_seconds    time of the batch
    train/waited_seconds   part of it in which the loader was waited for
    gpu/peak_gib           GPU memory that the first rank's torch has held at most
    loaders/NAME           what the loaders of all ranks counted since the start

Destinations decide when to show it.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist


class Throughput(Callback):
    """Logs loss, learning rate and times after each batch, and the loaders' counts after each validation, or epoch
    where there is none.

    Args:
        global_batch_size: images of a step.
        every_batches: batches between looks at the GPU's memory, which take time.
        counts: what this rank's loaders have counted of their samples since the start.
    """

    def __init__(self, global_batch_size: int, every_batches: int, counts: Callable[[], dict[str, int]]) -> None:
        self._global_batch_size = global_batch_size
        self._every_batches = every_batches
        self._counts = counts
        self._since = self._asked_at = time.monotonic()
        self._waited_seconds = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock. A run that resumes in mid-epoch has no start of an epoch."""
        self._since = time.monotonic()

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Start the clock again: the time between epochs (validation, a checkpoint) is not training time."""
        self._since = time.monotonic()

    def before_dataloader(self, state: State, logger: Logger) -> None:
        """Note when the next batch is asked for. A copy to the device in progress is not waited for here."""
        self._asked_at = time.monotonic()

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Note how long the loader took."""
        self._waited_seconds = time.monotonic() - self._asked_at

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the batch."""
        now = time.monotonic()
        metrics: dict[str, Any] = {
            "train/loss": loss_on_device(state),
            # The schedulers step before this event, so this is the next batch's rate.
            "train/next_lr": float(state.optimizers[0].param_groups[0]["lr"]),
            "train/images": self._global_batch_size,
            "train/batch_seconds": now - self._since,
            "train/waited_seconds": self._waited_seconds,
        }
        if torch.cuda.is_available() and state.timestamp.batch.value % self._every_batches == 0:
            metrics["gpu/peak_gib"] = round(torch.cuda.max_memory_reserved() / (1 << 30), 2)
        self._since = now
        logger.log_metrics(metrics)

    def eval_end(self, state: State, logger: Logger) -> None:
        """Log the loaders' counts."""
        self._log_counts(state, logger)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Log the loaders' counts if there is no validation to do it."""
        if not state.evaluators:
            self._log_counts(state, logger)

    def _log_counts(self, state: State, logger: Logger) -> None:
        """Log the loaders' counts, summed over the ranks."""
        logger.log_metrics({f"loaders/{name}": _over_ranks(count, state) for name, count in self._counts().items()})


def loss_on_device(state: State) -> torch.Tensor:
    """The loss of the last batch, the mean over the ranks: (1,), on the device."""
    assert isinstance(state.total_loss_dict, dict)
    loss: Any = state.total_loss_dict["loss/train/total"]
    assert isinstance(loss, torch.Tensor)
    return loss


def train_loss(state: State) -> float:
    """The loss of the last batch, the mean over the ranks. Waits for the device."""
    return float(loss_on_device(state))


def batches_per_epoch(state: State) -> int:
    """Steps of an epoch; within a validation, its batches."""
    assert state.dataloader_len is not None
    return int(state.dataloader_len.value)


def _over_ranks(count: int, state: State) -> int:
    summed = state.device.tensor_to_device(torch.tensor([count]))
    dist.all_reduce(summed, reduce_operation="SUM")
    return int(summed)


@dataclass
class Interval:
    """What a destination adds up from one line to its next."""

    images: float = 0.0
    batches: int = 0
    seconds: float = 0.0
    waited_seconds: float = 0.0

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add a batch that `Throughput` logged; other metrics are ignored."""
        if "train/batch_seconds" in metrics:
            self.images += metrics["train/images"]
            self.batches += 1
            self.seconds += metrics["train/batch_seconds"]
            self.waited_seconds += metrics["train/waited_seconds"]

    @property
    def images_per_second(self) -> float:
        """The rate over the interval."""
        return self.images / max(self.seconds, 1e-9)

    @property
    def batches_per_second(self) -> float:
        """The rate over the interval."""
        return self.batches / max(self.seconds, 1e-9)

    @property
    def waiting_share(self) -> float:
        """The share of the time in which the loader was waited for, 0 to 1."""
        return min(1.0, self.waited_seconds / max(self.seconds, 1e-9))
