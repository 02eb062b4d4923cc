"""Keeps an overflow in fp16 out of BatchNorm's running statistics."""

import torch
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import Tensor, nn


class OverflowGuard(Algorithm):
    """Puts the running statistics of the last good batch back after one that overflowed.

    The gradient scaler skips the step of such a batch. Its forward pass has updated the running statistics by then, and
    an infinity in a running mean stays for ever. Nothing here waits for the GPU, and a batch takes a few kernels and no
    walk through the model.
    """

    def __init__(self) -> None:
        """Skip the base class, which is a Serializable without state."""
        self._flat: list[Tensor] = []

    def match(self, event: Event, state: State) -> bool:
        """Match the start, and the end of each pass over a batch, before the average takes the statistics."""
        return event in (Event.FIT_START, Event.AFTER_TRAIN_BATCH)

    @torch.no_grad()
    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Keep the statistics if all of them are finite, or put the kept ones back."""
        if event == Event.FIT_START or not self._flat:
            self._keep_those_of(state.model)
            return
        now = torch.cat(self._flat)
        self._good.copy_(torch.where(torch.isfinite(now).all(), now, self._good))
        torch._foreach_copy_(self._flat, self._good_parts)

    def _keep_those_of(self, model: nn.Module) -> None:
        self._flat = [statistic.view(-1) for statistic in running_statistics(model)]
        self._good = torch.cat(self._flat)
        self._good_parts = list(torch.split(self._good, [statistic.numel() for statistic in self._flat]))


def running_statistics(model: nn.Module) -> list[Tensor]:
    """The running means and variances of a model, in the order of its modules."""
    return [buffer for buffer in model.buffers() if buffer.is_floating_point()]
