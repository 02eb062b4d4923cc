"""Checkpoints in mid-epoch that continue exactly, and the order to stop.

Composer's CheckpointSaver is the base class only because its EMA looks for one to know when to put the averaged weights
into the model. What it does is done anew: write under a temporary name, make durable, rename, record.

Private name used here and nowhere else: `Trainer._rng_state`.
"""

import os
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from composer.callbacks import CheckpointSaver
from composer.core import Event, State
from composer.loggers import Logger
from composer.utils import dist
from composer.utils.checkpoint import save_checkpoint

from imagenet_mds.errors import EXIT_STOPPED
from imagenet_mds.storage.atomic import sync_folder
from imagenet_mds_train.config.schema import CheckpointConfig
from imagenet_mds_train.interruption.stop import StopRequested
from imagenet_mds_train.loggers.run_log import RunLog, batches_per_epoch
from imagenet_mds_train.run.folder import RunFolder


class Checkpoints(CheckpointSaver):
    """Saves every so many batches and at each epoch's end, and on SIGTERM at the end of the batch, after which it
    raises `StopRequested` in every rank.

    Nothing is saved in the signal handler: it sets a flag, the ranks agree on it at the batch's end, and all save.
    """

    def __init__(
        self,
        config: CheckpointConfig,
        folder: RunFolder,
        identity: dict[str, Any],
        payload: dict[str, Any],
        log: RunLog,
    ) -> None:
        super().__init__(
            folder=str(folder.checkpoints),
            save_interval=self._is_due,
            overwrite=True,
            latest_filename=None,
            remote_file_name=None,
            latest_remote_file_name=None,
        )
        self.config = config
        self.run = folder
        self.identity = identity
        self.payload = payload
        self.run_log = log
        self.signalled = False
        self.stopping = False

    def listen(self) -> None:
        """From now on SIGTERM asks for a stop in good order; at once, while the ranks have not met: there is nothing to
        save, and they would wait for one that was stopped. Composer, when imported, takes the signal for itself."""

        def on_signal(number: int, frame: FrameType | None) -> None:
            if not torch.distributed.is_initialized():
                os._exit(EXIT_STOPPED)
            self.signalled = True

        signal.signal(signal.SIGTERM, on_signal)

    def _is_due(self, state: State, event: Event) -> bool:
        """Whether this event saves. EMA asks it too, so it must not change anything.

        The batch that ends an epoch is saved before validation, which may take longer than the notice of an
        interruption, and after it.
        """
        if self.run_log.not_finite_batches:
            return False
        if event == Event.EPOCH_CHECKPOINT:
            return True
        if event != Event.BATCH_CHECKPOINT:
            return False
        every = self.config.every_batches
        last_of_epoch = state.timestamp.batch_in_epoch.value == batches_per_epoch(state)
        return self.stopping or last_of_epoch or (every is not None and state.timestamp.batch.value % every == 0)

    def fit_start(self, state: State, logger: Logger) -> None:
        """Nothing: the base class would look for files of its own."""

    def batch_end(self, state: State, logger: Logger) -> None:
        """Agree on stopping: if one rank was signalled, all stop after the same batch."""
        self._agree(state)

    def eval_batch_end(self, state: State, logger: Logger) -> None:
        """Stop in the middle of a validation too: the epoch's last batch is saved already."""
        self._agree(state)
        if self.stopping:
            self._stop(state)

    def _agree(self, state: State) -> None:
        flag = state.device.tensor_to_device(torch.tensor([int(self.signalled)]))
        dist.all_reduce(flag, reduce_operation="MAX")
        self.stopping = bool(flag.item())

    def _stop(self, state: State) -> None:
        if dist.get_global_rank() == 0:
            self.run_log.write("stopped", batch=state.timestamp.batch.value)
        raise StopRequested

    def batch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save if it is due; stop if it was asked for."""
        if self._is_due(state, Event.BATCH_CHECKPOINT):
            self._save(state)
        if self.stopping:
            self._stop(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save at each epoch's end."""
        if self._is_due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def iteration_checkpoint(self, state: State, logger: Logger) -> None:
        """Nothing: there are no iterations beside batches and epochs here."""

    def state_dict(self) -> dict[str, Any]:
        """What lies in the checkpoint beside Composer's own: enough to rebuild the model without the run's folder."""
        return {"payload": self.payload}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing: it was compared before the ranks started."""

    def _save(self, state: State) -> None:
        epoch, batch = state.timestamp.epoch.value, state.timestamp.batch.value
        final = self.run.checkpoints / f"ep{epoch}-ba{batch}.pt"
        temporary = final.with_name(f".{final.stem}.tmp.pt")  # .pt, for Composer compresses by the ending
        saved = save_checkpoint(state, filename=str(temporary))
        if saved is None:  # only the first rank writes; the others gave it their random state
            return
        with open(saved, "rb+") as file:
            os.fsync(file.fileno())
        Path(saved).replace(final)
        sync_folder(final.parent)
        self.run.record_checkpoint(final, epoch=epoch, batch=batch, identity=self.identity, keep=self.config.keep)
        self.run_log.write("checkpoint", batch=batch, epoch=epoch)
