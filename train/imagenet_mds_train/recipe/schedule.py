"""The learning rate as a pure function of the batch number."""

import math

from composer.core import Callback, State
from composer.loggers import Logger


def lr_multiplier(batch: int, *, warmup_batches: int, total_batches: int, final_fraction: float) -> float:
    """The factor on the configured learning rate for batch number `batch`, counted from 0.

    Linear from 1 / warmup_batches to 1 over the warm-up (Goyal et al. 2017, section 2.2), then half a cosine
    (Loshchilov, Hutter 2017) to `final_fraction` at `total_batches`.

    Returns:
        Between 0 and 1.
    """
    if batch < warmup_batches:
        return (batch + 1) / warmup_batches
    done = (batch - warmup_batches) / max(1, total_batches - warmup_batches)
    return final_fraction + (1 - final_fraction) * 0.5 * (1 + math.cos(math.pi * min(done, 1.0)))


class LearningRate(Callback):
    """Sets the learning rate of each batch before it is trained on. It has no state.

    Composer's schedulers are asked before a batch is counted, so that each batch gets the rate of the one before.

    Args:
        lr: after the warm-up.
        warmup_batches: batches of the warm-up.
        total_batches: batches of the run.
        final_fraction: what the cosine falls to, as a share of `lr`.
    """

    def __init__(self, lr: float, *, warmup_batches: int, total_batches: int, final_fraction: float) -> None:
        self._lr = lr
        self._warmup_batches = warmup_batches
        self._total_batches = total_batches
        self._final_fraction = final_fraction

    def fit_start(self, state: State, logger: Logger) -> None:
        """Set the rate of the first batch, or of the one at which a run resumes."""
        self._set(state)

    def batch_end(self, state: State, logger: Logger) -> None:
        """Set the rate of the next batch: this one is counted by now."""
        self._set(state)

    def _set(self, state: State) -> None:
        multiplier = lr_multiplier(
            state.timestamp.batch.value,
            warmup_batches=self._warmup_batches,
            total_batches=self._total_batches,
            final_fraction=self._final_fraction,
        )
        for group in state.optimizers[0].param_groups:
            group["lr"] = self._lr * multiplier
