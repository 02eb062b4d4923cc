"""Uploads the checkpoints of a working copy to its run in S3. Imports no torch.

A checkpoint is published here first, and uploaded behind that, so that a crash on this machine goes on from the newest
one whatever S3 does. While S3 refuses, the newest one is tried again and those before it are given up.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds_train.checkpoints.store import CheckpointRecord
from imagenet_mds_train.run.mirror import RunMirror

KEPT_CHECKPOINTS = 3
KEPT_EVERY_EPOCHS = 10
"""Checkpoints that stay in S3: the last three, and the first one after every tenth epoch."""

_FIRST_PAUSE_SECONDS = 2.0
_LONGEST_PAUSE_SECONDS = 30.0
"""The pause doubles with each refusal in a row."""


class Uploads:
    """Uploads one checkpoint after the other.

    Args:
        mirror: the run, with a lease.
        patience_seconds: how long S3 may refuse before the run ends.
        first_pause_seconds: between the first refusal and the next attempt.
    """

    def __init__(
        self, mirror: RunMirror, patience_seconds: float, first_pause_seconds: float = _FIRST_PAUSE_SECONDS
    ) -> None:
        self._mirror = mirror
        self._patience_seconds = patience_seconds
        self._first_pause_seconds = self._pause_seconds = first_pause_seconds
        self._refused_since: float | None = None

    def upload(self, record: CheckpointRecord, superseded: Callable[[float], bool]) -> bool:
        """Upload a checkpoint, again and again while S3 refuses; training goes on meanwhile.

        Args:
            record: of a checkpoint of the working copy.
            superseded: waits for that many seconds, or less if there is a newer checkpoint; returns whether there is.

        Returns:
            Whether it is durable. Otherwise it was given up for a newer one.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 has refused for longer than the patience.
        """
        begun = time.monotonic()
        while True:
            try:
                self.publish(record)
            except (UserError, OSError) as error:
                if not self._is_here(record):  # a newer one has replaced it, and comes next
                    superseded(self._first_pause_seconds)
                    return False
                self._refused_since = begun if self._refused_since is None else self._refused_since
                left = self._refused_since + self._patience_seconds - time.monotonic()
                if left <= 0:
                    raise WorldError(self._out_of_patience(error)) from error
                print(f"note: {error}; the upload is tried again", file=sys.stderr, flush=True)
            else:
                self._refused_since, self._pause_seconds = None, self._first_pause_seconds
                return True
            pause_seconds = min(self._pause_seconds, left)
            self._pause_seconds = min(2 * self._pause_seconds, _LONGEST_PAUSE_SECONDS)
            if superseded(pause_seconds):
                return False

    def publish(self, record: CheckpointRecord) -> None:
        """Upload a checkpoint of the working copy, record it, and remove old ones. That of the best validation goes
        before it, if it was given up. The log is the first: another machine that continues from the checkpoint has the
        line of every batch before.

        Args:
            record: of a checkpoint that the working copy has.

        Raises:
            LostLease: another start continues the run.
            UserError, OSError: the storage refuses. What was there before is kept.
        """
        mirror = self._mirror
        mirror.refuse_lost_lease()
        if mirror.folder.log.is_file():
            mirror.storage.write("log.jsonl", mirror.folder.log.read_bytes())
        best, file = mirror.folder.read_best(), mirror.folder.path / "best.pt"
        if best is not None and file.is_file() and mirror.lacks_best():
            self._publish(file, best["epoch"], best["batch"], record.identity)
            mirror.storage.write("best.json", (mirror.folder.path / "best.json").read_bytes())
        if not mirror.checkpoints.has(record):
            here = mirror.folder.path / "checkpoints" / record.basename
            self._publish(here, record.epoch, record.batch, record.identity)

    def _publish(self, file: Path, epoch: int, batch: int, identity: dict[str, Any]) -> None:
        try:
            self._publish_new(file, epoch, batch, identity)
        except WorldError:
            # Left by a start that had the lease before and was late with it: this one has it now.
            self._mirror.refuse_lost_lease()
            name = f"ep{epoch}-ba{batch}"
            for left in (f"{name}.json", f"{name}.pt"):
                self._mirror.checkpoints.storage.delete(left)
            self._publish_new(file, epoch, batch, identity)

    def _publish_new(self, file: Path, epoch: int, batch: int, identity: dict[str, Any]) -> None:
        mirror = self._mirror
        # A second name, because the store moves what it is given, and the working copy may remove its own.
        staged = mirror.folder.staging / f"ep{epoch}-ba{batch}.pt"
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        os.link(file, staged)
        best = (mirror.folder.read_best(), mirror.read_best())
        try:
            mirror.checkpoints.publish(
                staged,
                epoch=epoch,
                batch=batch,
                identity=identity,
                keep_last=KEPT_CHECKPOINTS,
                keep_every_epochs=KEPT_EVERY_EPOCHS,
                keep_batches={one["batch"] for one in best if one},
            )
        finally:
            staged.unlink(missing_ok=True)

    def _is_here(self, record: CheckpointRecord) -> bool:
        return (self._mirror.folder.path / "checkpoints" / record.basename).is_file()

    def _out_of_patience(self, error: Exception) -> str:
        return (
            f"{self._mirror.storage.location} has taken no checkpoint for {self._patience_seconds:g} s "
            f"({error}): the last one is in {self._mirror.folder.path}. Run the same command again on this machine"
        )
