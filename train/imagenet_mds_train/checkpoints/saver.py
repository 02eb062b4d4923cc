"""Saves checkpoints that continue exactly, in mid-epoch too.

At a batch's end the state is copied, which is all that training waits for. A thread of the first rank writes a staging
file, and the store publishes it. Where the store is a working copy, a second thread uploads what is published, so that
a checkpoint of this machine never waits for the network.
"""

import re
import shutil
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from composer.core import Callback, Event, State
from composer.loggers import Logger
from composer.utils import dist

from imagenet_mds.errors import LastingError
from imagenet_mds_train.checkpoints.background import BackgroundWriter, Snapshot, copied
from imagenet_mds_train.checkpoints.pace import SavePace
from imagenet_mds_train.checkpoints.payload import PAYLOAD_KEY
from imagenet_mds_train.checkpoints.random_state import RandomStateOnResume
from imagenet_mds_train.checkpoints.store import CheckpointRecord, CheckpointStore
from imagenet_mds_train.config.schema import CheckpointConfig
from imagenet_mds_train.interruption.stop import StopRequest
from imagenet_mds_train.loggers.loss_guard import refuse_not_finite


@dataclass(frozen=True)
class Written:
    """A checkpoint in the store.

    stall_seconds: how long training stood still for it.
    taken_at: seconds of the monotonic clock; None if an earlier start published it, which is not reported again.
    """

    record: CheckpointRecord
    stall_seconds: float = 0.0
    taken_at: float | None = None


@dataclass(frozen=True)
class Saved:
    """A checkpoint that has become durable.

    batch, epoch: finished ones.
    stall_seconds: how long training stood still for it.
    durable_seconds: how long it took from then on until it was durable.
    interval_seconds: how long to train between checkpoints from now on, None if that is not decided by time.
    """

    batch: int
    epoch: int
    stall_seconds: float
    durable_seconds: float
    interval_seconds: float | None


class Checkpoints(Callback):
    """Saves every `every_batches`, as often as `pace` says, at each epoch's end, on request, and before a stop.

    Args:
        config: how often, and how many are kept.
        store: where they go.
        staging: a folder of this machine for the file that is being written, on the store's file system if that is
            local.
        payload: what lies beside Composer's state; see `payload.py`.
        random_state: gives the random state to save.
        stop: the requests to stop after a batch, or to save it.
        pace: how long to train between checkpoints; None saves by batches and epochs alone.
        averaged: has the averaged weights in the model meanwhile, if there are any.
        may_save: whether the model is worth saving now; the same in all ranks.
        keep_last: how many checkpoints stay in the store.
        upload: called on the uploading thread with a published checkpoint, and with what waits for a newer one for some
            seconds; returns whether it is durable, or was given up for a newer one. None where the store is durable.
        idle: called now and then on the uploading thread while nothing is uploaded; what it raises ends the run.
        on_written: called in the first rank, on the writing thread, when a checkpoint is published.
        on_saved: called in the first rank, on the last thread that had it, when a checkpoint is durable.
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
        pace: SavePace | None,
        *,
        averaged: Callable[[State], AbstractContextManager[None]],
        may_save: Callable[[], bool],
        keep_last: int,
        upload: Callable[[CheckpointRecord, Callable[[float], bool]], bool] | None,
        idle: Callable[[], None] | None,
        on_written: Callable[[CheckpointRecord], None],
        on_saved: Callable[[Saved], None],
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
        self._on_written = on_written
        self._on_saved = on_saved
        self._keep_last = keep_last
        self._upload = upload
        self._validates = validates
        self._pace = pace
        self._writer = BackgroundWriter(self._write)
        self._uploader = BackgroundWriter(self._make_durable, "uploads", idle)
        self._started = self._saved_at = time.monotonic()

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock, and in the first rank the threads."""
        if dist.get_global_rank() == 0:
            self._writer.start()
            if self._upload:
                self._uploader.start()
        self._started = self._saved_at = time.monotonic()

    def batch_start(self, state: State, logger: Logger) -> None:
        """Ask for a save of this batch if the last one is long enough ago. The first rank's clock counts."""
        if self._pace is None or dist.get_global_rank() or self._writer.busy:
            return
        now = time.monotonic()
        if now - self._saved_at >= self._pace.interval_seconds(now - self._started):
            self._saved_at = now
            self._stop.request_save()

    def _is_due(self, state: State, event: Event) -> bool:
        """Whether this event saves.

        The batch that ends an epoch is saved before a validation, which may take longer than the notice of an
        interruption, and again after it. Without a validation, it is saved once.
        """
        return self._is_asked_for(state, event) and self._may_save()

    def _is_asked_for(self, state: State, event: Event) -> bool:
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
            LastingError: a checkpoint could not be written.
        """
        if self._is_due(state, Event.BATCH_CHECKPOINT):
            self._save(state)
        self._writer.raise_if_failed()
        self._uploader.raise_if_failed()
        if self._stop.agreed:
            self.finish()
        self._stop.raise_if_agreed(state)

    def epoch_checkpoint(self, state: State, logger: Logger) -> None:
        """Save at the end of each epoch."""
        if self._is_due(state, Event.EPOCH_CHECKPOINT):
            self._save(state)

    def finish(self) -> None:
        """Wait until what was saved is durable.

        Raises:
            LastingError: a checkpoint could not be written.
        """
        self._writer.wait()
        self._uploader.wait()

    def upload(self, record: CheckpointRecord) -> None:
        """Upload the checkpoint that this start continues from, in the first rank, unless it is durable. The start that
        published it may have ended before."""
        self._uploader.put(Written(record))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Ignore the state that earlier versions saved here."""

    def _save(self, state: State) -> None:
        """Save one checkpoint. Every rank gives its random state, the first one copies the rest and has it written.

        Raises:
            NotFinite: the weights are not worth saving.
            LastingError: an earlier checkpoint could not be written.
        """
        begun = self._saved_at = time.monotonic()
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
            if dist.get_global_rank():
                return
            kept = copied(checkpoint)
        epoch, batch = state.timestamp.epoch.value, state.timestamp.batch.value
        self._writer.put(Snapshot(kept, epoch, batch, stall_seconds=time.monotonic() - begun))

    def _write(self, snapshot: Snapshot) -> None:
        """Write and publish a checkpoint, on the writing thread."""
        epoch, batch = snapshot.epoch, snapshot.batch
        file = self._staging / f"ep{epoch}-ba{batch}.pt"
        try:
            self._staging.mkdir(parents=True, exist_ok=True)
            torch.save(snapshot.checkpoint, file)
            record = self._store.publish(
                file,
                epoch=epoch,
                batch=batch,
                identity=self._payload["identity"],
                keep_last=self._keep_last,
            )
        except (OSError, RuntimeError) as error:
            file.unlink(missing_ok=True)
            if isinstance(error, RuntimeError) and not _WRITER.search(str(error)):
                raise
            raise LastingError(
                f"the checkpoint of batch {batch} cannot be written to {self._store.storage.location}: "
                f"{_reason(error, self._staging)}. The one before it is kept: make room and run the same command again"
            ) from error
        self._on_written(record)
        written = Written(record, snapshot.stall_seconds, snapshot.taken_at)
        if self._upload:
            self._uploader.put(written)
        else:
            self._say_durable(written)

    def _make_durable(self, written: Written) -> None:
        """Upload a checkpoint, on the uploading thread."""
        assert self._upload is not None
        if self._upload(written.record, self._uploader.superseded):
            self._say_durable(written)

    def _say_durable(self, written: Written) -> None:
        if written.taken_at is None:
            return
        durable_seconds, interval = time.monotonic() - written.taken_at, None
        if self._pace:
            self._pace.saved(stall_seconds=written.stall_seconds, durable_seconds=durable_seconds)
            interval = self._pace.interval_seconds(time.monotonic() - self._started)
        record = written.record
        self._on_saved(Saved(record.batch, record.epoch, written.stall_seconds, durable_seconds, interval))


_WRITER = re.compile(r"PytorchStreamWriter|inline_container|unexpected pos")
"""How torch's serializer says that it cannot write; any other error has nothing to do with the disk."""


def _reason(error: Exception, folder: Path) -> str:
    """Why a file could not be written; torch's serializer only says that it could not."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"its disk has {shutil.disk_usage(folder).free / 1e9:,.2f} GB free"
