"""MixUp or CutMix, one for each batch."""

import numpy as np
from composer.algorithms import CutMix, MixUp
from composer.core import Algorithm, Event, State
from composer.loggers import Logger


class MixUpOrCutMix(Algorithm):
    """Applies MixUp or CutMix to each batch, by a fair coin. Applied together, as Composer does, they stack and the
    labels are wrong."""

    def __init__(self, mixup: MixUp, cutmix: CutMix) -> None:
        self.both = (mixup, cutmix)
        self.chosen: Algorithm = mixup

    def match(self, event: Event, state: State) -> bool:
        """Match where both act: on the images before the forward pass, on the labels before the loss."""
        return event in (Event.BEFORE_FORWARD, Event.BEFORE_LOSS)

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Toss the coin at the images; the labels follow. NumPy's generator is used because checkpoints hold its
        state."""
        if event == Event.BEFORE_FORWARD:
            self.chosen = self.both[np.random.randint(2)]
        self.chosen.apply(event, state, logger)
