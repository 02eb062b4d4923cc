"""Ends a run whose loss is not a number."""

import math

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds_train.loggers.throughput import train_loss

_SCALED_PATIENCE_BATCHES = 10
"""Losses in a row that may overflow in fp16, where the gradient scaler skips such steps; elsewhere none may."""


class NotFinite(Exception):  # noqa: N818 # what the loss is
    """The loss is not a number any more. The message says since when, and what to do."""


class LossGuard(Callback):
    """Counts losses that are not finite, and ends the run in every rank alike: the loss is the mean over all ranks."""

    def __init__(self) -> None:
        self._not_finite_batches = 0

    def finite(self) -> bool:
        """Whether the last loss was a number, so that the model is worth saving."""
        return self._not_finite_batches == 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Check the loss of the batch.

        Raises:
            NotFinite: it is not a number, in fp16 for longer than the scaler needs.
        """
        loss = train_loss(state)
        self._not_finite_batches = 0 if math.isfinite(loss) else self._not_finite_batches + 1
        scaled = state.scaler is not None and state.scaler.is_enabled()
        if self._not_finite_batches > (_SCALED_PATIENCE_BATCHES if scaled else 0):
            since = state.timestamp.batch.value - self._not_finite_batches + 1
            raise NotFinite(
                f"the loss is {loss} since batch {since}: the learning rate is too high, or the data are broken. "
                f"Start a new run (--run-name) with a smaller optimizer.lr or a longer warm-up; "
                f"the last checkpoint is from before"
            )
