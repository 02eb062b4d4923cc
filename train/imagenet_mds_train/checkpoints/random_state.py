"""Restoring the random state of a checkpoint."""

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class RandomStateOnResume(Callback):
    """Restores the random state of the checkpoint before the first resumed batch.

    Composer restores it only when a run goes on at an epoch's start, or while it spins through a loader that cannot
    resume; in mid-epoch with a StreamingDataset MixUp would draw other numbers than the run never stopped.
    """

    trainer: Trainer | None = None

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Once, when the first batch is there and nothing has been drawn for it."""
        if self.trainer is not None and self.trainer._rng_state is not None:
            reproducibility.load_rng_state(self.trainer._rng_state)
            self.trainer._rng_state = None
