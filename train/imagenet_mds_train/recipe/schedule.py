"""The learning rate as a pure function of the batch number."""

import math
from typing import TYPE_CHECKING, Any

from imagenet_mds_train.config.schema import TrainConfig

if TYPE_CHECKING:
    from composer.core import State


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


def build_scheduler(config: TrainConfig, batches_per_epoch: int) -> Any:
    """Build the schedule as Composer calls it, as a function of its state."""
    warmup = round(config.schedule.warmup_epochs * batches_per_epoch)
    total = config.schedule.epochs * batches_per_epoch

    def scheduler(state: "State", ssr: float = 1.0) -> float:
        return lr_multiplier(
            state.timestamp.batch.value,
            warmup_batches=warmup,
            total_batches=total,
            final_fraction=config.schedule.final_lr_fraction,
        )

    return scheduler
