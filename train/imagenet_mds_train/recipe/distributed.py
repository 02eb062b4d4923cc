"""What keeps training on several ranks exact."""

from composer.core import Algorithm, Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist


class OneModel(Callback):
    """Lets every rank validate the model of the first rank, which is the one that is saved.

    After a step each rank has its own running statistics of BatchNorm, and its own moving average of them (DDP
    broadcasts those of the first rank only before the next step). Without this, a validation would cover as many models
    as ranks.
    """

    def eval_start(self, state: State, logger: Logger) -> None:
        """Broadcast the first rank's buffers. EMA has put its weights in by now: algorithms run before callbacks."""
        for buffer in state.model.buffers():
            dist.broadcast(buffer, src=0)


class StaticBuckets(Algorithm):
    """Keeps DDP from regrouping gradients after the first step, so that a resumed run adds them up in the same order.

    DDP regroups unless it looks for unused parameters, and asking for that is the only way that Composer leaves.
    Without it the weights of a resumed run on 4 ranks differ in the last bit. It costs a walk of the graph in each
    step. The algorithm acts on no event and has no state.
    """

    def __init__(self) -> None:
        """Skip the base class, which is a Serializable without state."""

    @property
    def find_unused_parameters(self) -> bool:
        """True because DDP then keeps its first buckets; the model has no unused parameters."""
        return True

    def match(self, event: Event, state: State) -> bool:
        """Match no event."""
        return False

    def apply(self, event: Event, state: State, logger: Logger) -> None:
        """Do nothing; `match` never asks for it."""
