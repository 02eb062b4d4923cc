"""A run in S3, with a folder of this machine as its working copy. Imports no torch.

What lies under `s3://.../NAME` is the run: its record, its log, its checkpoints, its result. A start on any machine
first makes the working copy equal to it (`pull`), then goes on as if the run had always been there. While it trains,
checkpoints go from the working copy to S3 (`uploads.py`), each followed by the small files (`push_files`). A start
writes only as long as it has the lease (`lease.py`).
"""

import json
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any

import xxhash

from imagenet_mds.dataset.cache_folder import default_cache
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.base import Storage
from imagenet_mds_train.checkpoints.store import CheckpointRecord, CheckpointStore
from imagenet_mds_train.run.folder import RunFolder
from imagenet_mds_train.run.lease import Lease

FILES = ("run.json", "log.jsonl", "result.json", "best.json", "wandb.json", "report.html", "job.json")
"""Small files of a run, in the order in which they are pushed."""


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

    def pull(self, warn: Callable[[str], None]) -> None:
        """Make the working copy equal to the run in S3, with its newest whole checkpoint. Lock the working copy first.

        A working copy that is further than S3, because its start ended before an upload, stays as it is, unless another
        machine has gone on meanwhile: its log is then not the beginning of this one.

        Args:
            warn: called with a line for each newer checkpoint that is broken.

        Raises:
            UserError: a later version of the program wrote the run.
            WorldError: the run saved checkpoints and none can be used, or S3 does not answer.
        """
        with self._answering():
            self._pull(warn)

    def _pull(self, warn: Callable[[str], None]) -> None:
        files = {name: self._read(name) for name in FILES}
        if files["run.json"] is None:
            self._refuse_bare_checkpoints()
            return
        self._forget_another_run(files["run.json"])
        self.folder.path.mkdir(parents=True, exist_ok=True)
        is_further = self._is_further(files["log.jsonl"])
        for name, data in files.items():
            path = self.folder.path / name
            if data is None or (is_further and path.is_file()):
                continue
            if name == "best.json" and path.is_file() and path.read_bytes() != data:
                (self.folder.path / "best.pt").unlink(missing_ok=True)
            path.write_bytes(data)
        if files["result.json"] is None:
            self._pull_checkpoint(warn, is_further=is_further)

    def _refuse_bare_checkpoints(self) -> None:
        """Refuse checkpoints without the record of their run: a new run would start at batch 0 beside them."""
        if names := [name for name in self.checkpoints.storage.list_names() if name.endswith(".pt")]:
            raise WorldError(
                f"{self.storage.location} has {names[-1]} without run.json, the record of its run: restore that, or "
                f"start a new run with --run-name"
            )

    def push_files(self) -> None:
        """Upload the small files.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 does not answer.
            UserError: it refuses.
        """
        with self._answering():
            self.refuse_lost_lease()
            for name in FILES:
                path = self.folder.path / name
                # What S3 says of the best checkpoint is true only when that is there.
                if path.is_file() and not (name == "best.json" and self.lacks_best()):
                    self.storage.write(name, path.read_bytes())

    def forget(self) -> None:
        """Give the name of a run back that was refused before its first batch; the working copy is left as it is.

        Raises:
            LostLease: another start continues the run.
            WorldError: S3 does not answer.
            UserError: it refuses.
        """
        with self._answering():
            self.refuse_lost_lease()
            for name in (*FILES, "lease"):
                self.storage.delete(name)

    def end_if_lease_is_lost(self) -> None:
        """Look whether another start has claimed the run, if S3 answers.

        Raises:
            LostLease: one has.
        """
        with suppress(UserError, OSError):
            self.refuse_lost_lease()

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
            self.refuse_lost_lease()
            self.checkpoints.discard_after(checkpoint)
            self.storage.remove_partials("checkpoints", complete=True)
        self.push_files()

    def read_best(self) -> dict[str, Any] | None:
        """What S3 has of the best validation; see `RunFolder.read_best`.

        Raises:
            UserError, OSError: the storage refuses.
        """
        try:
            found: dict[str, Any] | None = json.loads(self._read("best.json") or b"null")
        except ValueError:
            return None
        return found

    def lacks_best(self) -> bool:
        """Whether S3 lacks the checkpoint of the best validation so far.

        Raises:
            UserError, OSError: the storage refuses.
        """
        best = self.folder.read_best()
        if best is None:
            return False
        return self.checkpoints.storage.size_bytes(f"ep{best['epoch']}-ba{best['batch']}.json") is None

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Turn an answer that did not come into a message for the user."""
        try:
            yield
        except OSError as error:
            raise WorldError(
                f"{self.storage.location} does not answer ({error.strerror or error}): run the same command again"
            ) from error

    def refuse_lost_lease(self) -> None:
        """Make sure that this start may write.

        Raises:
            LostLease: another start continues the run.
            UserError, OSError: the storage refuses.
        """
        assert self.lease is not None
        self.lease.refuse_lost()

    def _read(self, name: str) -> bytes | None:
        try:
            return self.storage.read(name)
        except FileNotFoundError:
            return None

    def _is_further(self, theirs: bytes | None) -> bool:
        """Whether the working copy goes on where S3 ends: the log there is the beginning of the one here."""
        log = self.folder.log
        return theirs is None or (log.is_file() and log.read_bytes().startswith(theirs))

    def _forget_another_run(self, record: bytes) -> None:
        """Remove a working copy of a run that had this address before."""
        mine = self.folder.path / "run.json"
        if mine.is_file() and _id_of(mine.read_bytes()) != _id_of(record):
            for entry in self.folder.path.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()

    def _pull_checkpoint(self, warn: Callable[[str], None], *, is_further: bool) -> None:
        here = self.folder.checkpoints
        unreadable: list[str] = []
        records = self.checkpoints.records(unreadable.append)
        mine = here.newest_whole()
        faults = [f"{self.checkpoints.storage.location}/{name} is not a checkpoint's record" for name in unreadable]
        for record in records:
            if mine is not None and (mine == record or (is_further and mine.age >= record.age)):
                _warn_all(warn, faults)
                return
            staged = self.folder.staging / record.basename
            staged.parent.mkdir(parents=True, exist_ok=True)
            fault = self.checkpoints.fetch(record, staged)
            if fault is None:
                _warn_all(warn, faults)
                for other in here.records():
                    if other.age > record.age:
                        here.remove(other)
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
