"""Ends a run whose loss or weights are not numbers any more."""

import math

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds_train.loggers.throughput import loss_on_device
from imagenet_mds_train.readback import LateRead

_WAY_ON = (
    "The last checkpoint is from before: start a new run from it with --from-checkpoint RUN, another --run-name and a "
    "smaller optimizer.lr or a longer warm-up"
)

_SCALED_PATIENCE_BATCHES = 10
"""Losses in a row that may overflow in fp16, where the gradient scaler skips such steps; elsewhere none may."""


class NotFinite(Exception):  # noqa: N818 # what the loss is
    """The loss is not a number any more. The message says since when, and what to do."""


class LossGuard(Callback):
    """Counts losses that are not finite, and ends the run in every rank alike: the loss is the mean over all ranks. On
    a GPU the loss of a batch is read at the end of the next one, or of the epoch, or when the batch is to be saved."""

    def __init__(self) -> None:
        self._losses = LateRead()
        self._given_batch = self._not_finite_batches = 0
        self._since_batch: int | None = None
        self._loss = 0.0

    def finite(self) -> bool:
        """Whether the last loss was a number, so that the model is worth saving."""
        self._count(self._losses.last(), self._given_batch)
        return self._not_finite_batches == 0

    def batch_end(self, state: State, logger: Logger) -> None:
        """Check the loss of the batch, or of the one before it.

        Raises:
            NotFinite: it is not a number, in fp16 for longer than the scaler needs.
        """
        batch, loss = state.timestamp.batch.value, loss_on_device(state)
        self._count(self._losses.exchange(loss), self._given_batch if loss.is_cuda else batch)
        self._given_batch = batch
        self._end_if_lost(state)

    def epoch_end(self, state: State, logger: Logger) -> None:
        """Check the loss of the last batch.

        Raises:
            NotFinite: see `batch_end`.
        """
        self._count(self._losses.last(), self._given_batch)
        self._end_if_lost(state)

    def _count(self, losses: list[float] | None, batch: int) -> None:
        """Count the loss of a batch, if it was read."""
        if losses is None:
            return
        self._loss = losses[0]
        if math.isfinite(self._loss):
            self._not_finite_batches, self._since_batch = 0, None
            return
        self._not_finite_batches += 1
        self._since_batch = self._since_batch or batch

    def _end_if_lost(self, state: State) -> None:
        scaled = state.scaler is not None and state.scaler.is_enabled()
        if self._not_finite_batches > (_SCALED_PATIENCE_BATCHES if scaled else 0):
            raise NotFinite(
                f"the loss is {self._loss} since batch {self._since_batch}: the learning rate is too high, or the data "
                f"are broken. {_WAY_ON}"
            )


def refuse_not_finite(state: State) -> None:
    """Refuse weights or statistics that are not finite in any rank, before they are saved. The loss of a batch says
    nothing of them yet, because it is of the weights before the batch's step. All ranks must call this.

    Raises:
        NotFinite: they are not, in all ranks alike.
    """
    tensors = [tensor for tensor in (*state.model.parameters(), *state.model.buffers()) if tensor.is_floating_point()]
    finite = torch.isfinite(torch.stack(torch._foreach_norm(tensors))).all()
    everywhere = state.device.tensor_to_device(finite.to(torch.int32))
    dist.all_reduce(everywhere, reduce_operation="MIN")
    if not everywhere.item():
        raise NotFinite(
            f"the weights are not finite after batch {state.timestamp.batch.value}: the learning rate is too high, or "
            f"the data are broken. {_WAY_ON}"
        )
