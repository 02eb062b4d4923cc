"""What keeps several ranks exact."""

from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist


class OneModel(Callback):
    """Lets every rank validate the first rank's model, which is the one that is saved.

    BatchNorm's running statistics are each rank's own after a step (DDP sends the first rank's out only before the next
    one), and so is their moving average; without this a validation is of as many models as there are ranks.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Send the first rank's buffers to all. EMA has put its weights in by now: algorithms run before callbacks."""
        for buffer in state.model.buffers():
            dist.broadcast(buffer, src=0)


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
