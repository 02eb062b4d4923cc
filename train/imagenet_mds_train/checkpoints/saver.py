"""Saves checkpoints that continue exactly, in mid-epoch too.

Composer's CheckpointSaver is the base class only because Composer's EMA looks for one to know when to put the averaged
weights into the model. All its saving and loading is replaced: a staging file is written, then the store publishes it.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds_train.checkpoints.payload import PAYLOAD_KEY
from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume
from imagenet_mds_train.checkpoints.store import CheckpointStore
from imagenet_mds_train.config.schema import CheckpointConfig
from imagenet_mds_train.interruption.stop import StopRequest


class Checkpoints(CheckpointSaver):
    """Saves every `every_batches`, at the end of each epoch, and before a requested stop.

    Args:
        config: how often, and how many are kept.
        store: where they go.
        staging: a folder of this machine for the file that is being written, on the store's file system if that is
            local.
        payload: what lies beside Composer's state; see `payload.py`.
        random_state: gives the random state to save.
        stop: the request to stop after a batch.
        may_save: whether the model is worth saving now; the same in all ranks.
        on_saved: called in the first rank after each checkpoint, with finished batches and epochs.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        store: CheckpointStore,
        staging: Path,
        payload: dict[str, Any],
        random_state: RandomStateOnResume,
        stop: StopRequest,
        *,
        may_save: Callable[[], bool],
        on_saved: Callable[[int, int], None],
    ) -> None:
        super().__init__(
            folder="unused",
            save_interval=self._is_due,
            overwrite=True,
            latest_filename=None,
            remote_file_name=None,
            latest_remote_file_name=None,
        )
        self._config = config
        self._store = store
        self._staging = staging
        self._payload = payload
        self._random_state = random_state
        self._stop = stop
        self._may_save = may_save
        self._on_saved = on_saved

    def _is_due(self, state: State, event: Event) -> bool:
        """Whether this event saves. EMA asks too, so this must not change anything.

        The batch that ends an epoch is saved before validation, which may take longer than the notice of an
        interruption, and again after it.
        """
        if not self._may_save():
            return False
        if event == Event.EPOCH_CHECKPOINT:
            return True
        if event != Event.BATCH_CHECKPOINT:
            return False
        assert state.dataloader_len is not None
        every = self._config.every_batches
        last_of_epoch = state.timestamp.batch_in_epoch.value == state.dataloader_len.value
        return self._stop.agreed or last_of_epoch or (every is not None and state.timestamp.batch.value % every == 0)

    def init(self, state: State, logger: Logger) -> None:
        """Keep the base class from making a folder of its own, whose name it takes for a format string."""

    def fit_start(self, state: State, logger: Logger) -> None:
        """Keep the base class from looking for files of its own."""

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if it is due; then end the run if a stop was agreed on.

        Raises:
            StopRequested: a stop was agreed on, and the batch is saved.
        """
        if self._is_due(state, Event.BATCH_CHECKPOINT):
            self._save(state)
        self._stop.raise_if_agreed(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save at the end of each epoch."""
        if self._is_due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def iteration_checkpoint(self, state: State, logger: Logger) -> None:
        """Keep the base class from saving at Composer's iterations, which are not used here."""

    def state_dict(self) -> dict[str, Any]:
        """No state: a resumed run takes everything from its configuration."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state that earlier versions saved here."""

    def _save(self, state: State) -> None:
        """Save one checkpoint. Every rank gives its random state, the first one writes."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # near the memory limit, gathering the state needs some room
        checkpoint = {
            "state": state.state_dict(),
            "rng": self._random_state.to_save(),
            PAYLOAD_KEY: self._payload,
        }
        if dist.get_global_rank():
            return
        epoch, batch = state.timestamp.epoch.value, state.timestamp.batch.value
        self._staging.mkdir(parents=True, exist_ok=True)
        file = self._staging / f"ep{epoch}-ba{batch}.pt"
        torch.save(checkpoint, file)
        self._store.publish(
            file, epoch=epoch, batch=batch, identity=self._payload["identity"], keep_last=self._config.keep
        )
        self._on_saved(batch, epoch)
