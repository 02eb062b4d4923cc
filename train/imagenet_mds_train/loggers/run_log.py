"""The run's log: a JSON object a line. It exists in the first rank alone.

Every line has `event` (start, batch, eval, checkpoint, stopped, done, failed, and epoch without validation),
`attempt` and `time` (seconds since 1970). A `batch` line has `top1` (of training), `recipe/...` and `gpu/...` where
they are measured.
"""

from pathlib import Path
from typing import Any

from composer.core import State
from composer.loggers import Logger, LoggerDestination
from composer.utils import dist

from imagenet_mds_train.loggers.lines import append_event
from imagenet_mds_train.loggers.machine import machine
from imagenet_mds_train.loggers.throughput import Interval

EVAL_METRICS = {"metrics/val/top1": "top1", "metrics/val/top5": "top5", "metrics/val/loss": "loss"}
"""What Composer logs after a validation, and what it is called in the log."""


class RunLog(LoggerDestination):
    """Writes loss, learning rate and speed every `every_batches`, and every validation.

    Args:
        path: the log; lines are appended.
        attempt: which start of the run this is, counted from 1.
        every_batches: batches between lines.
    """

    def __init__(self, path: Path, *, attempt: int, every_batches: int) -> None:
        self._path = path
        self._attempt = attempt
        self._every_batches = every_batches
        self._interval = Interval()
        self._latest: dict[str, Any] = {}

    def write(self, event: str, **values: Any) -> None:
        """Append a line; see `append_event`."""
        append_event(self._path, event, self._attempt, **values)

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        """Remember metrics for the next line."""
        self._latest |= metrics
        self._interval.add(metrics)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Write where the run starts, and on what."""
        found = machine(on_gpu=state.device.name == "gpu")
        self.write(
            "start",
            batch=state.timestamp.batch.value,
            ranks=dist.get_world_size(),
            workers_per_rank=getattr(state.train_dataloader, "num_workers", None),
            machine=found,
        )

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Start a new interval: a line's speed is that of one epoch."""
        self._interval = Interval()

    def batch_end(self, state: State, logger: Logger) -> None:
        """Write a line if it is due."""
        batch = state.timestamp.batch.value
        if batch % self._every_batches:
            return
        self.write(
            "batch",
            batch=batch,
            epoch=state.timestamp.epoch.value,
            loss=float(self._latest["train/loss"]),
            next_lr=self._latest["train/next_lr"],
            images_per_second=round(self._interval.images_per_second, 1),
            batches_per_second=round(self._interval.batches_per_second, 3),
            waiting_for_data=round(self._interval.waiting_share, 3),
            **self._measured(),
        )
        self._interval = Interval()

    def _measured(self) -> dict[str, float]:
        """What else is known since the last line: the training accuracy, the recipe's state, the GPUs'."""
        names = [name for name in self._latest if name == "train/top1" or name.startswith(("recipe/", "gpu/"))]
        return {name.removeprefix("train/"): self._latest.pop(name) for name in names}

    def eval_end(self, state: State, logger: Logger) -> None:
        """Write the figures of a validation and what the loaders counted."""
        figures = {name: float(self._latest[metric]) for metric, name in EVAL_METRICS.items()}
        self._write_with_counts("eval", state, figures)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Write what the loaders counted if there is no validation to do it."""
        if not state.evaluators:
            self._write_with_counts("epoch", state, {})

    def _write_with_counts(self, event: str, state: State, figures: dict[str, float]) -> None:
        prefix = "loaders/"
        counts = {name.removeprefix(prefix): count for name, count in self._latest.items() if name.startswith(prefix)}
        self.write(event, batch=state.timestamp.batch.value, epoch=state.timestamp.epoch.value, **figures, **counts)
