"""Where the checkpoints of a run are kept: files and the records that make them count. Imports no torch.

    ep3-ba1500.pt      a checkpoint, moved to its name when it is whole
    ep3-ba1500.json    its record, created after it: place in the run, size, hash, the run's identity

A checkpoint counts only if its record is there and fits its size and hash. Composer's own way back is a symbolic link
to the newest file, which restarts from scratch where the link is lost; a run that has reached a batch never restarts at
0 here.
"""

import errno
import json
import re
from collections.abc import Callable, Collection
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import xxhash

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.storage.atomic import json_bytes
from imagenet_mds.storage.base import Storage, stored_xxh64

FORMAT = 1
"""The format of records. Those without a number are of format 1."""

_PIECE_BYTES = 1 << 22
_CHECKPOINT = re.compile(r"ep\d+-ba\d+\.pt")

LEAST_KEPT = 2
"""Checkpoints that stay in any case: if the newest proves to be of a run that was diverging, there is one before it."""


@dataclass(frozen=True)
class CheckpointRecord:
    """What is recorded beside a checkpoint: where in the run it was taken, what it is, which run it belongs to."""

    basename: str
    epoch: int
    batch: int
    size_bytes: int
    xxh64: str
    identity: dict[str, Any]
    format: int = FORMAT

    @property
    def age(self) -> tuple[int, int]:
        """Sorts records from the oldest to the newest. At the end of an epoch the batch is saved before validation and
        again after it, under the next epoch."""
        return self.batch, self.epoch


@dataclass(frozen=True)
class CheckpointStore:
    """The checkpoints of one run, in any storage."""

    storage: Storage

    def newest(self, reached_batch: int | None = None) -> tuple[CheckpointRecord | None, list[str]]:
        """The newest whole checkpoint.

        Args:
            reached_batch: the last batch that the run's log says was saved, None if it says nothing.

        Returns:
            The record, None for a run without checkpoints; and a line for each newer checkpoint that is broken.

        Raises:
            UserError: a later version of the program wrote the records.
            WorldError: the run saved checkpoints and none of them can be used.
        """
        unreadable: list[str] = []
        records = self.records(unreadable.append)
        where = self.storage.location
        warnings = [f"{where}/{name} is skipped: it is not a checkpoint's record" for name in unreadable]
        for record in records:
            fault = self._fault(record)
            if fault is None:
                return record, warnings
            warnings.append(f"{self.location_of(record)} is skipped: {fault}")
        if records or warnings or reached_batch is not None:
            until = f" up to batch {reached_batch}" if reached_batch is not None else ""
            raise WorldError(
                f"{self.storage.parent.location} saved checkpoints{until} and none can be used "
                f"({'; '.join(warnings) or 'they are gone'}): restore {self.storage.location}, or start a new run "
                f"with --run-name"
            )
        return None, warnings

    def names(self) -> list[str]:
        """The names of the checkpoints that have a record, the newest first."""
        return [record.basename for record in self.records()]

    def location_of(self, record: CheckpointRecord) -> str:
        """A checkpoint's location as a user types it."""
        return f"{self.storage.location}/{record.basename}"

    def has(self, record: CheckpointRecord) -> bool:
        """Whether this very checkpoint is recorded here.

        Raises:
            OSError: the storage refuses.
        """
        try:
            return self.storage.read(_record_name(record.basename)) == json_bytes(asdict(record))
        except FileNotFoundError:
            return False

    def newest_whole(self) -> CheckpointRecord | None:
        """The newest checkpoint that is as its record says, None if there is none."""
        return next((record for record in self.records() if self._fault(record) is None), None)

    def publish(
        self,
        file: Path,
        *,
        epoch: int,
        batch: int,
        identity: dict[str, Any],
        keep_last: int,
        keep_every_epochs: int | None = None,
        keep_batches: Collection[int] = (),
    ) -> CheckpointRecord:
        """Take a finished checkpoint file over, record it, then remove old ones.

        Args:
            file: on this machine's disk; moved into the storage under its own name.
            epoch: finished epochs.
            batch: finished batches.
            identity: the run's.
            keep_last: how many checkpoints stay, this one included.
            keep_every_epochs: the first checkpoint after every N epochs stays as well; None for none.
            keep_batches: the checkpoints of these batches stay as well.

        Returns:
            The record.

        Raises:
            WorldError: another process published a checkpoint of the same place. Its record is not overwritten, nor its
                checkpoint unless both are published at the same moment.
            OSError: the storage refuses. What was published before is kept.
        """
        taken = WorldError(
            f"{self.storage.location}/{file.name} was published by another process: only one may continue "
            f"{self.storage.parent.location}"
        )
        if self.storage.size_bytes(_record_name(file.name)) is not None:
            raise taken
        size_bytes, xxh64 = self.storage.adopt(file, file.name)
        if (stored := self.storage.size_bytes(file.name)) != size_bytes:
            raise OSError(errno.EIO, f"{stored} bytes arrived of {size_bytes}", f"{self.storage.location}/{file.name}")
        record = CheckpointRecord(file.name, epoch, batch, size_bytes, xxh64, identity)
        try:
            self.storage.create(_record_name(file.name), json_bytes(asdict(record)))
        except FileExistsError:
            raise taken from None
        others = [other for other in self.records() if other.age != record.age]
        # Another one of this batch is from before the epoch's validation, and holds nothing that this one lacks.
        before = [other for other in others if other.batch != batch]
        kept = before[: keep_last - 1] + [other for other in before if other.batch in keep_batches]
        if keep_every_epochs:
            first = {other.epoch: other for other in before}  # the newest come first
            kept += [other for epoch, other in first.items() if epoch and epoch % keep_every_epochs == 0]
        for old in others:
            if old not in kept:
                self.remove(old)
        return record

    def take(self, file: Path, record: CheckpointRecord) -> None:
        """Take a whole checkpoint over from another store, with its record.

        Args:
            file: its content, on this machine's disk; moved into the storage.
            record: of the other store.

        Raises:
            OSError: the storage refuses.
        """
        self.remove(record)
        self.storage.adopt(file, record.basename)
        self.storage.create(_record_name(record.basename), json_bytes(asdict(record)))

    def fetch(self, record: CheckpointRecord, file: Path) -> str | None:
        """Copy a checkpoint into a file of this machine, a second time if it does not arrive as its record says: damage
        on the way must not be taken for a damaged checkpoint, which the run removes.

        Returns:
            What is wrong with it, None if it is whole.

        Raises:
            OSError: the storage refuses, or the file cannot be written.
        """
        return self._fetch_once(record, file) and self._fetch_once(record, file)

    def _fetch_once(self, record: CheckpointRecord, file: Path) -> str | None:
        digest, size_bytes = xxhash.xxh64(), 0
        try:
            with open(file, "wb") as out:
                for piece in self.storage.pieces(record.basename, _PIECE_BYTES):
                    out.write(piece)
                    digest.update(piece)
                    size_bytes += len(piece)
        except FileNotFoundError:
            return "missing"
        return _difference(record, size_bytes, digest.hexdigest())

    def discard_after(self, record: CheckpointRecord | None) -> None:
        """Remove what would be in the way of a run that continues from `record`, None for its start: newer checkpoints,
        unreadable records, partial files of a killed start, and checkpoints that it had not recorded yet, which the run
        may never save again under the same name. Newer checkpoints are broken, otherwise the run would continue from
        them, and must not count when the newest are kept. The run must be locked.

        Raises:
            UserError: a later version of the program wrote a record.
            OSError: the storage refuses.
        """
        unreadable: list[str] = []
        kept = set()
        for other in self.records(unreadable.append):
            if record is None or other.age > record.age:
                self.remove(other)
            else:
                kept.add(other.basename)
        for name in unreadable:
            self.storage.delete(name)
        # Without a checkpoint to continue from, files whose records were lost may be all that is left of the run.
        for name in self.storage.list_names() if record else []:
            if _CHECKPOINT.fullmatch(name) and name not in kept:
                self.storage.delete(name)
        self.storage.remove_partials(complete=False)

    def _fault(self, record: CheckpointRecord) -> str | None:
        size_bytes = self.storage.size_bytes(record.basename)
        if size_bytes is None:
            return "missing"
        xxh64 = stored_xxh64(self.storage, record.basename) if size_bytes == record.size_bytes else ""
        return _difference(record, size_bytes, xxh64)

    def remove(self, record: CheckpointRecord) -> None:
        """Remove a checkpoint, its record first.

        Raises:
            OSError: the storage refuses.
        """
        self.storage.delete(_record_name(record.basename))
        self.storage.delete(record.basename)

    def records(self, on_unreadable: Callable[[str], None] = lambda name: None) -> list[CheckpointRecord]:
        """The records, the newest first. Calls `on_unreadable` with the name of each that is not a record.

        Raises:
            UserError: a later version of the program wrote a record.
            OSError: the storage refuses.
        """
        records = []
        try:
            names = self.storage.list_names()
        except NotADirectoryError:  # the run's folder is not one; creating it will say so
            return []
        for name in names:
            if not name.endswith(".json") or name.startswith("."):
                continue
            place = f"{self.storage.location}/{name}"
            try:
                record = CheckpointRecord(**json.loads(self.storage.read(name)))
            except FileNotFoundError:  # removed since it was listed
                continue
            except (ValueError, TypeError) as error:
                if _format_of(self.storage.read(name)) > FORMAT:
                    raise _too_new(place) from error
                on_unreadable(name)
                continue
            if record.format > FORMAT:
                raise _too_new(place)
            records.append(record)
        return sorted(records, key=lambda record: record.age, reverse=True)


def _difference(record: CheckpointRecord, size_bytes: int, xxh64: str) -> str | None:
    """How a checkpoint differs from its record, None if it does not."""
    if size_bytes != record.size_bytes:
        return f"{size_bytes:,} bytes, its record has {record.size_bytes:,}"
    return None if xxh64 == record.xxh64 else "its content is not what its record has"


def _record_name(basename: str) -> str:
    """The name of the record of a checkpoint."""
    return f"{Path(basename).stem}.json"


def _format_of(data: bytes) -> int:
    """The format that a record which this version cannot read claims to have; 0 if it claims none."""
    try:
        value = json.loads(data)
    except ValueError:
        return 0
    found = value.get("format", 0) if isinstance(value, dict) else 0
    return found if isinstance(found, int) else 0


def _too_new(place: str) -> UserError:
    return UserError(f"{place} was written by a later version of imagenet-mds: continue the run with that version")
