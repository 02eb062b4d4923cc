"""Saves checkpoints that continue exactly, in mid-epoch too: a staging file is written, then the store publishes it."""

import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds.errors import LastingError
from imagenet_mds_train.checkpoints.payload import PAYLOAD_KEY
from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume
from imagenet_mds_train.checkpoints.store import LEAST_KEPT, CheckpointStore
from imagenet_mds_train.config.schema import CheckpointConfig
from imagenet_mds_train.interruption.stop import StopRequest
from imagenet_mds_train.loggers.loss_guard import refuse_not_finite


class Checkpoints(Callback):
    """Saves every `every_batches`, at the end of each epoch, on request, and before a requested stop.

    Args:
        config: how often, and how many are kept.
        store: where they go.
        staging: a folder of this machine for the file that is being written, on the store's file system if that is
            local.
        payload: what lies beside Composer's state; see `payload.py`.
        random_state: gives the random state to save.
        stop: the requests to stop after a batch, or to save it.
        averaged: has the averaged weights in the model meanwhile, if there are any.
        may_save: whether the model is worth saving now; the same in all ranks.
        on_saved: called in the first rank after each checkpoint, with finished batches and epochs.
        validates: whether a validation follows that many finished epochs.
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
        averaged: Callable[[State], AbstractContextManager[None]],
        may_save: Callable[[], bool],
        on_saved: Callable[[int, int], None],
        validates: Callable[[int], bool],
    ) -> None:
        self._config = config
        self._store = store
        self._staging = staging
        self._payload = payload
        self._random_state = random_state
        self._stop = stop
        self._averaged = averaged
        self._may_save = may_save
        self._on_saved = on_saved
        self._validates = validates

    def _is_due(self, state: State, event: Event) -> bool:
        """Whether this event saves.

        The batch that ends an epoch is saved before a validation, which may take longer than the notice of an
        interruption, and again after it. Without a validation, it is saved once.
        """
        if not self._may_save():
            return False
        if event == Event.EPOCH_CHECKPOINT:
            return True
        if event != Event.BATCH_CHECKPOINT:
            return False
        assert state.dataloader_len is not None
        every = self._config.every_batches
        if state.timestamp.batch_in_epoch.value == state.dataloader_len.value:
            return self._stop.agreed or self._validates(state.timestamp.epoch.value + 1)
        requested = self._stop.agreed or self._stop.save_agreed
        return requested or (every is not None and state.timestamp.batch.value % every == 0)

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

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state that earlier versions saved here."""

    def _save(self, state: State) -> None:
        """Save one checkpoint. Every rank gives its random state, the first one writes.

        Raises:
            NotFinite: the weights are not worth saving.
            LastingError: the checkpoint cannot be written.
        """
        self._stop.save_agreed = False
        refuse_not_finite(state)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()  # near the memory limit, gathering the state needs some room
        with self._averaged(state):
            checkpoint = {
                "state": state.state_dict(),
                "rng": self._random_state.to_save(),
                PAYLOAD_KEY: self._payload,
            }
            self._write(checkpoint, state)

    def _write(self, checkpoint: dict[str, Any], state: State) -> None:
        """Write and publish a checkpoint in the first rank, while its tensors stay as they are."""
        if dist.get_global_rank():
            return
        epoch, batch = state.timestamp.epoch.value, state.timestamp.batch.value
        file = self._staging / f"ep{epoch}-ba{batch}.pt"
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
            torch.save(checkpoint, file)
            self._store.publish(
                file,
                epoch=epoch,
                batch=batch,
                identity=self._payload["identity"],
                keep_last=max(self._config.keep, LEAST_KEPT),
            )
        except (OSError, RuntimeError) as error:
            file.unlink(missing_ok=True)
            if isinstance(error, RuntimeError) and not _WRITER.search(str(error)):
                raise
            raise LastingError(
                f"the checkpoint of batch {batch} cannot be written to {self._store.storage.location}: "
                f"{_reason(error, self._staging)}. The one before it is kept: make room and run the same command again"
            ) from error
        self._on_saved(batch, epoch)


_WRITER = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos")
"""How torch's serializer says that it cannot write; any other error has nothing to do with the disk."""


def _reason(error: Exception, folder: Path) -> str:
    """Why a file could not be written; torch's serializer only says that it could not."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"its disk has {shutil.disk_usage(folder).free / 1e9:,.2f} GB free"
