"""What a run leaves on the disk, and where it can go on. Imports no torch.

    FOLDER/NAME/run.json               the configuration and identity of the run, written at its first start
    FOLDER/NAME/log.jsonl              a line an event: start, batch, eval, checkpoint, stopped, done
    FOLDER/NAME/checkpoints/*.pt       Composer's checkpoints, each with a record beside it (*.json), written after it
    FOLDER/NAME/result.json            the final figures, written last: where it exists, the run is over

A checkpoint counts only if its record is there and fits its size and hash. Composer's own way back is a symbolic link
to the newest file, which starts anew where the link is lost; a run that has reached a batch never starts at 0 here.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.atomic import write_json
from imagenet_mds.storage.base import file_xxh64

_LAST_BREATH_SECONDS = 3.0
"""How long the ranks of a killed launcher may take to end, and hold the run so long."""


@dataclass(frozen=True)
class CheckpointRecord:
    """What stands beside a checkpoint: where in the run it was taken, what it is, which run it belongs to."""

    basename: str
    epoch: int
    batch: int
    size_bytes: int
    xxh64: str
    identity: dict[str, Any]


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Where the checkpoints lie."""
        return self.path / "checkpoints"

    @property
    def log(self) -> Path:
        """The log, a JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def result(self) -> Path:
        """The final figures; its existence means that the run is over."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """The final figures, None while the run is not over."""
        return _read_object(self.result)

    def read_identity(self) -> dict[str, Any] | None:
        """The identity of the run, None where no run was ever started."""
        run = _read_object(self.path / "run.json")
        return run["identity"] if run else None

    def begin(self, config: dict[str, Any], identity: dict[str, Any]) -> None:
        """Record what the run is. The newest configuration stays; the identity never changes."""
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        for partial in self.checkpoints.glob(".*.tmp*"):  # of a killed start
            partial.unlink()
        write_json(self.path / "run.json", {"format": 1, "config": config, "identity": identity})

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Hold the run against a second start of it; gives the descriptor that holds it.

        Raises:
            UserError: it is running, or its folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be made: {error.strerror}; give another --save") from None
        with contextlib.ExitStack() as stack:
            deadline = time.monotonic() + _LAST_BREATH_SECONDS
            while True:
                try:
                    lock = stack.enter_context(locked_folder(self.path))
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.path} is running already: wait for it, or give another --run-name"
                        ) from None
                time.sleep(0.05)
            yield lock

    def events(self) -> list[dict[str, Any]]:
        """The log's events in order; a last line that a killed run cut short is left out."""
        if not self.log.exists():
            return []
        events = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def newest_checkpoint(self) -> tuple[CheckpointRecord | None, list[str]]:
        """The newest whole checkpoint, and what is wrong with newer ones that are not.

        Returns:
            None for a run that has no checkpoint yet, and a line a broken newer one.

        Raises:
            WorldError: the run had checkpoints and none of them can be used.
        """
        notes: list[str] = []
        records = self._records(notes)
        for record in records:
            fault = self._fault(record)
            if fault is None:
                return record, notes
            notes.append(f"{self.checkpoints / record.basename} is left out: {fault}")
        reached = max((event["batch"] for event in self.events() if event["event"] == "checkpoint"), default=None)
        if records or notes or reached is not None:
            until = f" up to batch {reached}" if reached is not None else ""
            raise WorldError(
                f"{self.path} saved checkpoints{until} and none can be used ({'; '.join(notes) or 'they are gone'}): "
                f"put {self.checkpoints} back, or start a new run with --run-name"
            )
        return None, notes

    def _fault(self, record: CheckpointRecord) -> str | None:
        path = self.checkpoints / record.basename
        if not path.is_file():
            return "missing"
        if path.stat().st_size != record.size_bytes:
            return f"{path.stat().st_size:,} bytes, its record has {record.size_bytes:,}"
        return None if file_xxh64(path) == record.xxh64 else "its content is not what its record has"

    def record_checkpoint(self, path: Path, *, epoch: int, batch: int, identity: dict[str, Any], keep: int) -> None:
        """Record a checkpoint that is durable under its final name, then remove all but the newest `keep`."""
        record = CheckpointRecord(path.name, epoch, batch, path.stat().st_size, file_xxh64(path), identity)
        write_json(path.with_suffix(".json"), asdict(record))
        others = [other for other in self._records([]) if other.basename != record.basename]
        # One of the same batch is from before the epoch's validation: what it had, this one has.
        kept = [other for other in others if other.batch != batch][: keep - 1]
        for old in others:
            if old not in kept:
                self._remove(old)

    def remove_after(self, batch: int) -> None:
        """Remove checkpoints of later batches than the one the run goes on from: they are broken, or it would have gone
        on from them. They must not count when the newest are kept."""
        for record in self._records([]):
            if record.batch > batch:
                self._remove(record)

    def _remove(self, record: CheckpointRecord) -> None:
        path = self.checkpoints / record.basename
        path.with_suffix(".json").unlink(missing_ok=True)
        path.unlink(missing_ok=True)

    def _records(self, notes: list[str]) -> list[CheckpointRecord]:
        """The records, the newest first; a line in `notes` for one that cannot be read."""
        records = []
        for path in self.checkpoints.glob("*.json"):
            try:
                records.append(CheckpointRecord(**json.loads(path.read_bytes())))
            except FileNotFoundError:  # removed between the listing and now
                continue
            except (ValueError, TypeError):
                notes.append(f"{path} is left out: it is no record")
        return sorted(records, key=lambda record: (-record.batch, -record.epoch))


def _read_object(path: Path) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise WorldError(f"{path} is damaged: put it back, or start a new run with --run-name") from None
    return value


def find_checkpoint(location: str) -> Path:
    """A checkpoint by its file, or the newest whole one of a run's folder.

    Raises:
        UserError: there is none.
    """
    path = Path(location)
    if path.is_file():
        return path
    if (path / "run.json").is_file():
        record, _ = RunFolder(path).newest_checkpoint()
        if record is None:
            raise UserError(f"{path} has no checkpoint yet: run its `imagenet-mds train` on")
        return path / "checkpoints" / record.basename
    raise UserError(f"there is no checkpoint at {path}: give a .pt file, or the folder of a run")
