"""The losses of batches that are trained again, of which nothing is saved."""

import sys

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds_train.interruption.stop import StopRequest
from imagenet_mds_train.loggers.throughput import train_loss


class ReplayedLosses(Callback):
    """Records the loss of each batch.

    Args:
        stop: the request to stop after a batch.
        until_batch: the last batch.
        print_every_batches: batches between lines on standard error; None prints nothing.
    """

    def __init__(self, stop: StopRequest, until_batch: int, *, print_every_batches: int | None) -> None:
        self._stop = stop
        self._until_batch = until_batch
        self._print_every_batches = print_every_batches
        self.losses: list[float] = []
        """Of each batch after the checkpoint, the mean over the ranks."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """Record the batch."""
        self.losses.append(train_loss(state))
        batch = state.timestamp.batch.value
        if self._print_every_batches and len(self.losses) % self._print_every_batches == 0:
            print(f"batch {batch} of {self._until_batch} loss {self.losses[-1]:.4f}", file=sys.stderr, flush=True)

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """End the run if a stop was agreed on: a replay saves nothing.

        Raises:
            StopRequested: a stop was agreed on.
        """
        self._stop.raise_if_agreed(state)
