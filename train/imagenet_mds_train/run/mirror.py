"""A run in S3, with a folder of this machine as its working copy. Imports no torch.

What lies under `s3://.../NAME` is the run: its record, its log, its checkpoints, its result. A start on any machine
first makes the working copy equal to it (`pull`), then goes on as if the run had always been there. While it trains,
each checkpoint goes from the working copy to S3, then the small files (`push_files`). A start writes only as long as it
has the lease (`lease.py`).
"""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace

import xxhash

from imagenet_mds.dataset.access import default_cache
from imagenet_mds.errors import CommandError, UserError, WorldError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds_train.checkpoints.store import CheckpointRecord, CheckpointStore
from imagenet_mds_train.run.folder import RunFolder, read_object
from imagenet_mds_train.run.lease import Lease

KEPT_CHECKPOINTS = 3
KEPT_EVERY_EPOCHS = 10
"""Checkpoints that stay in S3: the last three, and the first one after every tenth epoch."""

PATIENCE_SECONDS = 900.0
"""How long S3 may refuse a checkpoint before the run ends."""

_LONGEST_PAUSE_SECONDS = 30.0

_FILES = ("run.json", "log.jsonl", "result.json", "best.json", "wandb.json", "report.html")
"""Small files of a run, in the order in which they are pushed."""

_PERMISSIONS = {
    "list": "s3:ListBucket",
    "put": "s3:PutObject",
    "get": "s3:GetObject",
    "delete": "s3:DeleteObject",
}


@dataclass(frozen=True)
class RunMirror:
    """A run in S3 and its working copy here.

    storage: of the run.
    folder: its working copy.
    lease: the right to write the run; None before it is claimed.
    """

    storage: Storage
    folder: RunFolder
    lease: Lease | None = None

    @classmethod
    def at(cls, location: str) -> "RunMirror":
        """The run at an `s3://` address, with its working copy in the cache of this machine.

        Raises:
            UserError: it is not such an address.
        """
        storage = open_storage(location)
        place = xxhash.xxh64_hexdigest(storage.location.encode())
        path = default_cache() / "runs" / place / storage.name
        return cls(storage, RunFolder(path, address=storage.location))

    @classmethod
    def of_job(cls, location: str, folder: RunFolder, generation: int) -> "RunMirror":
        """The run as a rank writes it, with the lease that its launcher claimed."""
        storage = open_storage(location)
        return cls(storage, folder, Lease(storage.child("lease"), generation))

    @property
    def checkpoints(self) -> CheckpointStore:
        """The checkpoints in S3."""
        return CheckpointStore(self.storage.child("checkpoints"))

    def claimed(self) -> "RunMirror":
        """This run with the right to write it, taken from whoever had it.

        Raises:
            UserError: S3 refuses.
            WorldError: it does not answer.
        """
        with self._answering():
            return replace(self, lease=Lease.claim(self.storage.child("lease")))

    def check_permissions(self) -> None:
        """List, write, read and delete under the run's prefix.

        Raises:
            UserError: one of them is refused; the message names the permission.
        """
        name = f".permissions-{socket.gethostname()}-{os.getpid()}"

        def read() -> None:
            if self.storage.read(name) != b"permissions":
                raise OSError("another content came back")

        calls: dict[str, Callable[[], object]] = {
            "list": self.storage.list_names,
            "put": lambda: self.storage.write(name, b"permissions"),
            "get": read,
            "delete": lambda: self.storage.delete(name),
        }
        for what, call in calls.items():
            try:
                call()
            except (CommandError, OSError) as error:
                raise UserError(
                    f"{self.storage.location} cannot be used for a run, {what} failed ({error}): allow "
                    f"{_PERMISSIONS[what]} there, or pass another --save"
                ) from error

    def pull(self, warn: Callable[[str], None]) -> None:
        """Make the working copy equal to the run in S3, with its newest whole checkpoint. Lock the working copy first.

        A working copy that is further than S3, because its start was killed before an upload, stays as it is.

        Args:
            warn: called with a line for each newer checkpoint that is broken.

        Raises:
            UserError: a later version of the program wrote the run.
            WorldError: the run saved checkpoints and none can be used, or S3 does not answer.
        """
        with self._answering():
            self._pull(warn)

    def _pull(self, warn: Callable[[str], None]) -> None:
        files = {name: self._read(name) for name in _FILES}
        if files["run.json"] is None:
            return
        self._forget_another_run(files["run.json"])
        self.folder.path.mkdir(parents=True, exist_ok=True)
        for name, data in files.items():
            if data is not None and not (name == "log.jsonl" and self._has_longer_log(data)):
                (self.folder.path / name).write_bytes(data)
        if files["result.json"] is None:
            self._pull_checkpoint(warn)

    def publish(self, record: CheckpointRecord) -> None:
        """Upload a checkpoint of the working copy, record it, and remove old ones. The log goes before it: another
        machine that continues from the checkpoint has the line of every batch before.

        Args:
            record: of a checkpoint that the working copy has.

        Raises:
            LostLease: another start continues the run.
            WorldError: another process published the same checkpoint.
            UserError, OSError: the storage refuses. What was there before is kept.
        """
        self._refuse_lost_lease()
        if self.folder.log.is_file():
            self.storage.write("log.jsonl", self.folder.log.read_bytes())
        try:
            self._publish(record)
        except WorldError:
            # Left by a start that had the lease before and was late with it: this one has it now.
            self._refuse_lost_lease()
            self.checkpoints.remove(record)
            self._publish(record)

    def publish_patiently(
        self, record: CheckpointRecord, patience_seconds: float = PATIENCE_SECONDS, pause_seconds: float = 2.0
    ) -> None:
        """Publish a checkpoint, again and again while S3 refuses; training goes on meanwhile.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 has refused for longer than the patience.
        """
        deadline = time.monotonic() + patience_seconds
        while True:
            try:
                self.publish(record)
                return
            except (UserError, OSError) as error:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise WorldError(
                        f"{self.storage.location} has taken no checkpoint for {patience_seconds / 60:.0f} minutes "
                        f"({error}): the last one is in {self.folder.path}. Run the same command again on this machine"
                    ) from error
                print(f"note: {error}; the upload is tried again", file=sys.stderr, flush=True)
            time.sleep(min(pause_seconds, left))
            pause_seconds = min(2 * pause_seconds, _LONGEST_PAUSE_SECONDS)

    def push_files(self) -> None:
        """Upload the small files.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 does not answer.
            UserError: it refuses.
        """
        with self._answering():
            self._refuse_lost_lease()
            for name in _FILES:
                path = self.folder.path / name
                if path.is_file():
                    self.storage.write(name, path.read_bytes())

    def forget(self) -> None:
        """Give the name of a run back that was refused before its first batch; the working copy is left as it is.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 does not answer.
            UserError: it refuses.
        """
        with self._answering():
            self._refuse_lost_lease()
            for name in (*_FILES, "lease"):
                self.storage.delete(name)

    def end_if_lease_is_lost(self) -> None:
        """Look whether another start has claimed the run, if S3 answers.

        Raises:
            LostLease: one has.
        """
        with suppress(UserError, OSError):
            self._refuse_lost_lease()

    def push_files_if_it_answers(self) -> None:
        """Upload the small files; if S3 does not take them now, the next ones replace them anyway.

        Raises:
            LostLease: another start continues the run.
        """
        try:
            self.push_files()
        except (UserError, WorldError) as error:
            print(f"note: {error}", file=sys.stderr, flush=True)

    @property
    def lacks_result(self) -> bool:
        """Whether the run is over here and not in S3, because its start was killed in between."""
        with self._answering():
            return self.folder.result.is_file() and self.storage.size_bytes("result.json") is None

    def prepare(self, checkpoint: CheckpointRecord | None) -> None:
        """Remove what would be in the way of a start from a checkpoint, None for a run's first: broken checkpoints that
        are newer, and unfinished uploads. Then push what the run is. Claim the lease first.

        Raises:
            LostLease: another start continues the run.
            UserError, WorldError: the storage refuses.
        """
        with self._answering():
            self._refuse_lost_lease()
            self.checkpoints.discard_after(checkpoint)
            self.storage.remove_partials("checkpoints", complete=True)
        self.push_files()

    def _publish(self, record: CheckpointRecord) -> None:
        # A second name, because the store moves what it is given.
        staged = self.folder.staging / record.basename
        staged.parent.mkdir(parents=True, exist_ok=True)
        staged.unlink(missing_ok=True)
        os.link(self.folder.path / "checkpoints" / record.basename, staged)
        try:
            best = read_object(self.folder.path / "best.json") or {}
            self.checkpoints.publish(
                staged,
                epoch=record.epoch,
                batch=record.batch,
                identity=record.identity,
                keep_last=KEPT_CHECKPOINTS,
                keep_every_epochs=KEPT_EVERY_EPOCHS,
                keep_batch=best.get("batch"),
            )
        finally:
            staged.unlink(missing_ok=True)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn an answer that did not come into a message for the user."""
        try:
            yield
        except OSError as error:
            raise WorldError(
                f"{self.storage.location} does not answer ({error.strerror or error}): run the same command again"
            ) from error

    def _refuse_lost_lease(self) -> None:
        assert self.lease is not None
        self.lease.refuse_lost()

    def _read(self, name: str) -> bytes | None:
        try:
            return self.storage.read(name)
        except FileNotFoundError:
            return None

    def _has_longer_log(self, data: bytes) -> bool:
        log = self.folder.log
        return log.is_file() and log.read_bytes().startswith(data)

    def _forget_another_run(self, record: bytes) -> None:
        """Remove a working copy of a run that had this address before."""
        mine = self.folder.path / "run.json"
        if mine.is_file() and _id_of(mine.read_bytes()) != _id_of(record):
            for entry in self.folder.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _pull_checkpoint(self, warn: Callable[[str], None]) -> None:
        here = self.folder.checkpoints
        unreadable: list[str] = []
        records = self.checkpoints.records(unreadable.append)
        mine = here.newest_whole()
        faults = [f"{self.checkpoints.storage.location}/{name} is not a checkpoint's record" for name in unreadable]
        for record in records:
            if mine is not None and mine.age >= record.age:
                _warn_all(warn, faults)
                return
            staged = self.folder.staging / record.basename
            staged.parent.mkdir(parents=True, exist_ok=True)
            fault = self.checkpoints.fetch(record, staged)
            if fault is None:
                _warn_all(warn, faults)
                here.take(staged, record)
                return
            staged.unlink(missing_ok=True)
            faults.append(f"{self.checkpoints.location_of(record)} is skipped: {fault}")
        if faults and mine is None:
            raise WorldError(
                f"{self.storage.location} saved checkpoints and none can be used ({'; '.join(faults)}): restore "
                f"{self.checkpoints.storage.location}, or start a new run with --run-name"
            )


def _warn_all(warn: Callable[[str], None], lines: Iterable[str]) -> None:
    for line in lines:
        warn(line)


def _id_of(record: bytes) -> str | None:
    try:
        found: str | None = json.loads(record).get("id")
    except ValueError:
        return None
    return found
