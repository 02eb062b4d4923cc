"""Numbers the training batches, and logs what was done to them. Imports Composer, which takes seconds that readers of
batches alone need not spend."""

from composer.core import Callback, State
from composer.loggers import Logger

from imagenet_mds_train.augment.mixing import Mixing
from imagenet_mds_train.data.device import DeviceLoader


class NumberedBatches(Callback):
    """Tells a loader the number of the batch that it begins with, and logs `recipe/size_px` and `recipe/mixup_share` or
    `recipe/cutmix_share` (the share of an image's own pixels, 0 to 1).

    Args:
        loader: of the training batches.
        mixing: what is done to them.
        every_batches: batches between logged values.
    """

    def __init__(self, loader: DeviceLoader, mixing: Mixing, every_batches: int) -> None:
        self._loader, self._mixing, self._every_batches = loader, mixing, every_batches

    def fit_start(self, state: State, logger: Logger) -> None:
        """Count from where the run starts or resumes."""
        self._loader.next_batch = state.timestamp.batch.value

    def epoch_start(self, state: State, logger: Logger) -> None:
        """Count from the epoch's first batch."""
        self._loader.next_batch = state.timestamp.batch.value

    def batch_end(self, state: State, logger: Logger) -> None:
        """Log what was done to the batch if it is due."""
        batch = state.timestamp.batch.value
        if batch % self._every_batches == 0:
            height, width = state.batch[0].shape[2:]
            drawn = self._mixing.drawn(batch - 1, int(height), int(width))
            logger.log_metrics(
                {"recipe/size_px": int(height)} | ({f"recipe/{drawn[0]}_share": drawn[1]} if drawn else {})
            )
