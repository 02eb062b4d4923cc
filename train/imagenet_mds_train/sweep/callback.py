"""The learning-rate sweep within a training: it takes the place of the schedule."""

import sys

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds_train.interruption.stop import StopRequest
from imagenet_mds_train.loggers.throughput import train_loss
from imagenet_mds_train.sweep.curve import Sweep, has_diverged, smooth


class LearningRateSweep(Callback):
    """Sets the learning rate of each batch, records the loss, and ends the training when the loss has diverged. The
    loss is the mean over all ranks, so all of them end after the same batch.

    Args:
        sweep: the learning rates.
        stop: the request to stop after a batch.
        print_every_batches: batches between lines on standard error; None prints nothing.
    """

    def __init__(self, sweep: Sweep, stop: StopRequest, *, print_every_batches: int | None) -> None:
        self.sweep = sweep
        self._stop = stop
        self._print_every_batches = print_every_batches
        self.losses: list[float] = []
        """Of each batch."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Set the rate of the first batch."""
        self._set(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Record the batch. Set the rate of the next one, or end the training."""
        lr = self.sweep.lr(len(self.losses))
        self.losses.append(train_loss(state))
        count = len(self.losses)
        if self._print_every_batches and count % self._print_every_batches == 0:
            said = f"batch {count}/{self.sweep.batches} learning rate {lr:.2g} loss {self.losses[-1]:.4f}"
            print(said, file=sys.stderr, flush=True)
        if has_diverged(smooth(self.losses)):
            state.stop_training()
        self._set(state)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """End the run if a stop was agreed on: a sweep saves nothing.

        Raises:
            StopRequested: a stop was agreed on.
        """
        self._stop.raise_if_agreed(state)

    def _set(self, state: State) -> None:
        lr = self.sweep.lr(len(self.losses))
        for group in state.optimizers[0].param_groups:
            group["lr"] = lr
            if "full_lr" in group:
                # A run with this rate decays the weights by the whole of the decay at it, not at the configured one.
                group["full_lr"] = lr
