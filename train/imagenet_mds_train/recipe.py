"""The configured recipe as Composer's objects. The order of the algorithms is fixed here, not in the YAML.

To add an algorithm: give it a section in `imagenet_mds.config.AlgorithmsConfig`, build it here at its right place, and
add it to the resume tests.
"""

from typing import Any

import numpy as np
import torch
from composer.algorithms import EMA, BlurPool, ChannelsLast, CutMix, LabelSmoothing, MixUp
from composer.core import Algorithm, Event, State
from composer.loggers import Logger
from torch import nn

from imagenet_mds.config import AlgorithmsConfig, OptimizerConfig, TrainConfig
from imagenet_mds_train.model import parameter_groups
from imagenet_mds_train.schedule import lr_multiplier


class MixUpOrCutMix(Algorithm):
    """One of the two for each batch, by a fair coin. Both at once, as Composer has it, stack and give wrong labels."""

    def __init__(self, mixup: MixUp, cutmix: CutMix) -> None:
        self.both = (mixup, cutmix)
        self.chosen: Algorithm = mixup

    def match(self, event: Event, state: State) -> bool:
        """Where the two act: on the images before the forward pass, on the labels before the loss."""
        return event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Toss at the images; the labels follow. numpy's generator, whose state a checkpoint has."""
        if event == Event.BEFORE_FORWARD:
            self.chosen = self.both[np.random.randint(2)]
        self.chosen.apply(event, state, logger)


class StaticBuckets(Algorithm):
    """Keeps DDP from regrouping gradients after the first step, so that a resumed run adds them up in the same order.

    DDP regroups unless it looks for unused parameters; to ask for that is the only way Composer leaves. Without it the
    weights of a resumed run on 4 ranks differ in the last bit. It costs a walk of the graph each step.
    """

    def __init__(self) -> None:
        """No state."""

    @property
    def find_unused_parameters(self) -> bool:
        """Yes, for its effect on the buckets; there are none."""
        return True

    def match(self, event: Event, state: State) -> bool:
        """Never."""
        return False

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Nothing."""


def build_algorithms(config: AlgorithmsConfig, *, deterministic: bool) -> list[Algorithm]:
    """The algorithms that are on, in the order that is right: mixing before smoothing, the average last."""
    algorithms: list[Algorithm] = []
    if config.channels_last:
        algorithms.append(ChannelsLast())
    if config.blurpool:
        algorithms.append(BlurPool())
    mixup = MixUp(alpha=config.mixup.alpha) if config.mixup else None
    cutmix = CutMix(alpha=config.cutmix.alpha) if config.cutmix else None
    if mixup and cutmix:
        algorithms.append(MixUpOrCutMix(mixup, cutmix))
    else:
        algorithms += [algorithm for algorithm in (mixup, cutmix) if algorithm]
    if config.label_smoothing:
        algorithms.append(LabelSmoothing(smoothing=config.label_smoothing.smoothing))
    if config.ema:
        algorithms.append(EMA(half_life=f"{config.ema.half_life_batches}ba", update_interval="1ba"))
    if deterministic:
        algorithms.append(StaticBuckets())
    return algorithms


def build_optimizer(config: OptimizerConfig, network: nn.Module) -> torch.optim.SGD:
    """SGD over the network's parameter groups."""
    groups = parameter_groups(network, decay_norm_and_bias=config.decay_norm_and_bias, weight_decay=config.weight_decay)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov)


def build_scheduler(config: TrainConfig, batches_per_epoch: int) -> Any:
    """The schedule as Composer calls it: a function of its state."""
    warmup = round(config.schedule.warmup_epochs * batches_per_epoch)
    total = config.schedule.epochs * batches_per_epoch

    def scheduler(state: State, ssr: float = 1.0) -> float:
        return lr_multiplier(
            state.timestamp.batch.value,
            warmup_batches=warmup,
            total_batches=total,
            final_fraction=config.schedule.final_lr_fraction,
        )

    return scheduler
