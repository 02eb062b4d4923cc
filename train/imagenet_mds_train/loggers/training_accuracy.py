"""The accuracy of training batches, every few of them, because it must be read back from the device."""

import torch
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import dist
from torch import Tensor


class TrainingAccuracy(Callback):
    """Logs `train/top1`, the share of a batch's images whose likeliest class is the label, over all ranks.

    The label of a mixed image is that of the image that has the larger share in it. Averaged weights are not used.

    Args:
        every_batches: batches between measurements.
    """

    def __init__(self, every_batches: int) -> None:
        self._every_batches = every_batches
        self._counts: Tensor | None = None

    def _is_due(self, state: State) -> bool:
        """Whether the present batch is measured. It is not counted before its end."""
        return (state.timestamp.batch.value + 1) % self._every_batches == 0

    @torch.no_grad()
    def after_forward(self, state: State, logger: Logger) -> None:
        """Count the images of a microbatch."""
        if not self._is_due(state):
            return
        targets: Tensor = state.batch[1]
        weighs = targets.sum(1) > 0
        assert isinstance(state.outputs, Tensor)
        right = (state.outputs.argmax(1) == targets.argmax(1)) & weighs
        counts = torch.stack([right.sum(), weighs.sum()])
        self._counts = counts if self._counts is None else self._counts + counts

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log the share if the batch was measured."""
        if self._counts is None:
            return
        dist.all_reduce(self._counts, reduce_operation="SUM")
        right, counted = self._counts.tolist()
        self._counts = None
        logger.log_metrics({"train/top1": right / max(counted, 1)})
