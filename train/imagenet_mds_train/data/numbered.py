"""Numbers the training batches. Imports Composer, which takes seconds that readers of batches alone need not spend."""

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds_train.data.device import DeviceLoader


class NumberedBatches(Callback):
    """Tells a loader the number of the batch that it begins with."""

    def __init__(self, loader: DeviceLoader) -> None:
        self._loader = loader

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count from where the run starts or resumes."""
        self._loader.next_batch = state.timestamp.batch.value

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Count from the epoch's first batch."""
        self._loader.next_batch = state.timestamp.batch.value
