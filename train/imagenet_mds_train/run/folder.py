"""The folder of a run on this machine. Imports no torch.

    FOLDER/NAME/run.json               configuration and identity of the run, written at each start
    FOLDER/NAME/verified.json          shards that were verified, see `dataset.verified`
    FOLDER/NAME/job.json               what the ranks of the last start do
    FOLDER/NAME/log.jsonl              a line per event: start, batch, eval or epoch, checkpoint, stopped, failed, done
    FOLDER/NAME/rank<N>.log            the output of every rank but the first, whose log has tracebacks alone
    FOLDER/NAME/checkpoints/           see `checkpoints.store`
    FOLDER/NAME/checkpoints/.staging/  the checkpoint that is being written
    FOLDER/NAME/best.pt, best.json     the checkpoint of the best validation, and what that was
    FOLDER/NAME/wandb.json             the id of the run at Weights & Biases, if it is logged there
    FOLDER/NAME/wandb/, tensorboard/   what those programs read
    FOLDER/NAME/result.json            the final figures
    FOLDER/NAME/node<N>/               on the other machines of a run on several, see `run.follow`
    FOLDER/NAME/report.html            the page of `imagenet-mds runs report`, if it was asked for

The result is written last: where it exists, the run is over. `docs/runs.md` describes the files for readers.
"""

import contextlib
import json
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.process.locks import locked_folder
from imagenet_mds.storage.atomic import write_json
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.checkpoints.store import CheckpointRecord, CheckpointStore

FORMAT = 1
"""The format of `run.json`."""

_EXIT_GRACE_SECONDS = 3.0
"""How long the ranks of a killed launcher may take to exit; they hold the lock until then."""


@dataclass(frozen=True)
class RunFolder:
    """The folder of one run.

    path: on this machine.
    address: of the run in S3, of which the folder is a copy; None for a run that is only here.
    store: of the checkpoints, if they are not in the folder.
    """

    path: Path
    address: str | None = None
    store: CheckpointStore | None = None

    @property
    def location(self) -> str:
        """The run as a user types it."""
        return self.address or str(self.path)

    @property
    def checkpoints(self) -> CheckpointStore:
        """The run's checkpoints."""
        return self.store or CheckpointStore(LocalStorage(self.path / "checkpoints"))

    @property
    def staging(self) -> Path:
        """Where a checkpoint is written before it is published. It is within `checkpoints`, which may be a link to
        another disk, because publishing renames."""
        return self.path / "checkpoints" / ".staging"

    @property
    def log(self) -> Path:
        """The log, a JSON object a line."""
        return self.path / "log.jsonl"

    @property
    def result(self) -> Path:
        """The final figures. Where the file exists, the run is over."""
        return self.path / "result.json"

    def read_result(self) -> dict[str, Any] | None:
        """The final figures, None while the run is not over.

        Raises:
            WorldError: the file is damaged.
        """
        return read_object(self.result)

    def read_best(self) -> dict[str, Any] | None:
        """The `epoch`, `batch` and `top1` of the best validation so far, None before one.

        Raises:
            WorldError: the file is damaged.
        """
        return read_object(self.path / "best.json")

    def read_identity(self) -> dict[str, Any] | None:
        """The identity of the run, None where no run was ever started.

        Raises:
            UserError: a later version of the program wrote it.
            WorldError: the file is damaged.
        """
        run = read_object(self.path / "run.json")
        if run is None:
            return None
        if run.get("format", 0) > FORMAT:
            raise UserError(
                f"{self.path} was written by a later version of imagenet-mds: continue it with that version, or start "
                f"a new run with --run-name"
            )
        identity: dict[str, Any] = run["identity"]
        return identity

    def create(self, config: dict[str, Any], identity: dict[str, Any], forked_from: str | None = None) -> None:
        """Record what the run is, and remove what a killed start left in the staging folder. A later start replaces the
        configuration; the identity stays the same.

        Args:
            config: as plain values.
            identity: what must not change within the run.
            forked_from: the checkpoint whose weights the run started from, if any.

        Raises:
            OSError: the folder cannot be written.
        """
        shutil.rmtree(self.staging, ignore_errors=True)
        (self.path / "checkpoints").mkdir(parents=True, exist_ok=True)
        before = read_object(self.path / "run.json") or {}
        origin = forked_from or before.get("forked_from")
        # Tells the run from another one that has its place later.
        number = before.get("id") or secrets.token_hex(8)
        run = {"format": FORMAT, "id": number, "config": config, "identity": identity}
        write_json(self.path / "run.json", run | ({"forked_from": origin} if origin else {}))

    @contextlib.contextmanager
    def lock(self) -> Iterator[int]:
        """Lock the run against a second start, and give the lock's descriptor.

        Raises:
            UserError: the run is in progress, or its folder cannot be created.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"{self.path} cannot be created: {error.strerror}; pass another --save") from None
        with contextlib.ExitStack() as stack:
            deadline = time.monotonic() + _EXIT_GRACE_SECONDS
            while True:
                try:
                    lock = stack.enter_context(locked_folder(self.path))
                    break
                except PermissionError:
                    raise UserError(
                        f"{self.path} belongs to another user: continue it as that one, or give it to you with chown -R"
                    ) from None
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        raise UserError(
                            f"{self.path} is running already: wait for it, or pass another --run-name"
                        ) from None
                time.sleep(0.05)
            yield lock

    def events(self) -> list[dict[str, Any]]:
        """The events of the log in order, without a last line that a killed run cut short."""
        if not self.log.exists():
            return []
        events = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            try:
                events.append(json.loads(line))
            except ValueError:
                continue
        return events

    def refuse_bare_checkpoints(self) -> None:
        """Refuse a folder of checkpoints without the record of their run: nothing says what they belong to, and a new
        run would start at batch 0 beside them.

        Raises:
            UserError: it is one.
        """
        files = sorted((self.path / "checkpoints").glob("*.pt")) + sorted(self.path.glob("*.pt"))
        if files and not (self.path / "run.json").exists():
            raise UserError(
                f"{self.path} has {files[-1].name} without the records of its run: bring the whole folder, or start "
                f"another run from its weights with --run-name and --from-checkpoint {files[-1]}"
            )

    @property
    def is_untouched(self) -> bool:
        """Whether no batch was ever begun."""
        return not self.checkpoints.names() and not any(event["event"] == "start" for event in self.events())

    def forget(self) -> None:
        """Give the name of a run back that the ranks refused before its first batch; remove what its start wrote."""
        shutil.rmtree(self.staging, ignore_errors=True)
        for name in ("run.json", "job.json", "verified.json"):
            (self.path / name).unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: there was something else
            (self.path / "checkpoints").rmdir()
            self.path.rmdir()

    def newest_checkpoint(self) -> tuple[CheckpointRecord | None, list[str]]:
        """The newest whole checkpoint and warnings about newer ones; see `CheckpointStore.newest`.

        Raises:
            UserError: a later version of the program wrote the records.
            WorldError: the run saved checkpoints and none of them can be used.
        """
        return self.checkpoints.newest(self.saved_batch)

    @property
    def saved_batch(self) -> int | None:
        """The last batch that the log says was saved, None if it says nothing."""
        return max((event["batch"] for event in self.events() if event["event"] == "checkpoint"), default=None)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON object in a file; None if there is no such file.

    Raises:
        WorldError: it is damaged.
    """
    try:
        value: dict[str, Any] = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        raise WorldError(f"{path} is damaged: restore it, or start a new run with --run-name") from None
    return value
