"""Ends a run whose loss or weights are not numbers any more."""

import math

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds_train.loggers.throughput import train_loss

_WAY_ON = (
    "The last checkpoint is from before: start a new run from it with --from-checkpoint RUN, another --run-name and a "
    "smaller optimizer.lr or a longer warm-up"
)

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
                f"{_WAY_ON}"
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
