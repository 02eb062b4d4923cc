"""Random state across a resume.

Private name used here and nowhere else: `Trainer._rng_state`.
"""

from typing import Any

from composer import Trainer
from composer.core import Callback, State
from composer.loggers import Logger
from composer.utils import reproducibility


class RandomStateOnResume(Callback):
    """Restores the random state of the checkpoint before the first resumed batch.

    Composer restores it only when a run continues at the start of an epoch, or while it spins through a loader that
    cannot resume. In mid-epoch with a StreamingDataset, MixUp would draw other numbers than the uninterrupted run.
    """

    trainer: Trainer | None = None

    def after_dataloader(self, state: State, logger: Logger) -> None:
        """Restore once, when the first batch is there and nothing has been drawn for it."""
        if self.trainer is not None and self.trainer._rng_state is not None:
            reproducibility.load_rng_state(self.trainer._rng_state)
            self.trainer._rng_state = None

    def to_save(self) -> list[dict[str, Any]]:
        """The random state of every rank for a checkpoint; all ranks must call this.

        A state that was loaded and is not restored yet is saved again, because a run that resumes at an epoch's last
        batch saves the end of the epoch before it draws anything.
        """
        if self.trainer is not None and self.trainer._rng_state is not None:
            return list(self.trainer._rng_state)
        return list(reproducibility.get_rng_state())
