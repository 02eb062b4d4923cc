"""What a game is played with: the undisturbed runs, machines, commands, and what is said of a finished game."""

import contextlib
import json
import os
import signal
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from tests.support.command import HANG_SECONDS, environment, start
from tests.support.s3_server import BUCKET, Proxy, direct
from tests.support.states import read_log, read_state, tree_of

EPOCHS = 3
BATCHES_PER_EPOCH = 152 // 8
BATCHES = EPOCHS * BATCHES_PER_EPOCH
EVERY_BATCHES = 3
IN_FLIGHT_SECONDS = 5.0
"""Least time that is granted to the two saves that may be under way when a run is killed."""

HANG_AFTER_SECONDS, STOP_WITHIN_SECONDS, PATIENCE_SECONDS = 30, 40, 20
"""What the runs of games wait for ranks that hang, for ranks to stop, and for S3: less than others, to save time."""

RECIPE = (
    "global_batch_size=8",
    "augment.size_px=24",
    "evaluation={resize_px: 28, crop_px: 24, device_batch_size: 16, workers_per_rank: 0}",
    "model.depth=10",
    f"schedule={{epochs: {EPOCHS}, warmup_epochs: 0}}",
    "algorithms={mixup: {alpha: 0.2}, cutmix: {}, label_smoothing: {smoothing: 0.1}, ema: {half_life_batches: 10}}",
    "data={subset: 152, workers_per_rank: 1}",
    "system.deterministic=true",
    f"checkpoint.every_batches={EVERY_BATCHES}",
    "logging.every_batches=1",
    f"system={{hang_seconds: {HANG_AFTER_SECONDS}, stop_seconds: {STOP_WITHIN_SECONDS}}}",
    f"checkpoint.patience_seconds={PATIENCE_SECONDS}",
)


class Finished(Exception):  # noqa: N818 # what happened
    """The run was done before the fault could come."""


class Unavailable(Exception):  # noqa: N818 # what happened
    """This machine lacks what the fault is made with."""


@dataclass(frozen=True)
class Whole:
    """The undisturbed run: its last checkpoint's state, and the loss of each batch."""

    state: dict[str, Any]
    losses: dict[int, float]


@dataclass(frozen=True)
class Arena:
    """What games share.

    in_s3: the dataset's copy in S3.
    wholes: undisturbed runs by their number of ranks.
    """

    dataset: Path
    in_s3: str
    server: int
    proxy: Proxy
    wholes: Mapping[int, Whole]


@dataclass
class Played:
    """A fault and what came of it.

    outcome: `stopped`, `went on`, `missed` if the run was done before it, or `not possible here`.
    again: batches that the next start trained a second time; None before it or if none followed.
    seconds: from the command to the first trained batch of that start.
    """

    name: str
    outcome: str = ""
    moment: str = ""
    again: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Report:
    """A finished game. `again` counts all batches trained a second time."""

    seed: int
    ranks: int
    starts: int
    again: int
    seconds: float
    faults: list[Played]


def arguments(dataset: object, save: object, name: str, ranks: int) -> list[object]:
    """The command that starts a run and continues it."""
    return [
        "train",
        "--config",
        "demo",
        "--data",
        dataset,
        "--save",
        save,
        "--run-name",
        name,
        "--ranks",
        ranks,
        *RECIPE,
    ]


def undisturbed(dataset: Path, folder: Path, ranks: Iterable[int]) -> dict[int, Whole]:
    """Runs on a disk that nothing interrupts, side by side."""
    processes = {
        count: start(*arguments(dataset, folder, f"whole{count}", count), log=folder / f"whole{count}.out")
        for count in ranks
    }
    wholes = {}
    for count, process in processes.items():
        assert process.wait(HANG_SECONDS) == 0, (folder / f"whole{count}.out").read_text(encoding="utf-8")
        run = folder / f"whole{count}"
        losses = {event["batch"]: event["loss"] for event in read_log(run / "log.jsonl") if event["event"] == "batch"}
        wholes[count] = Whole(read_state(run / "checkpoints" / f"ep{EPOCHS}-ba{BATCHES}.pt"), losses)
    return wholes


def is_running(pid: int) -> bool:
    """Whether a process has not ended, nor waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill_tree(pid: int) -> list[int]:
    """Kill a process and all below it, as a machine that is taken away does. Return what was killed."""
    pids = tree_of(pid)
    for one in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGKILL)
    return pids


@dataclass
class Machine:
    """A machine of its own: its cache, and nothing else that lasts."""

    folder: Path

    @property
    def variables(self) -> dict[str, str]:
        """Its environment."""
        return {"XDG_CACHE_HOME": str(self.folder / "cache"), "HOME": str(self.folder)}

    def log(self, name: str) -> list[dict[str, Any]]:
        """The log of the working copy of a run."""
        found = list(self.folder.glob(f"cache/imagenet-mds/runs/*/{name}/log.jsonl"))
        return read_log(found[0]) if found else []

    def newest(self, name: str) -> int:
        """Finished batches of the newest checkpoint in the working copy of a run, 0 if there is none."""
        found = self.folder.glob(f"cache/imagenet-mds/runs/*/{name}/checkpoints/*.json")
        return max((age_of(path.stem)[0] for path in found), default=0)

    def shards(self) -> list[Path]:
        """The shards that were fetched."""
        # Those with a dot are being fetched, or are locks.
        found = self.folder.glob("cache/imagenet-mds/**/[!.]*.mds")
        return sorted(path for path in found if not path.parent.name.startswith("."))


@dataclass
class Command:
    """A command that runs, or has ended.

    out: the file of its output.
    started: seconds of the wall clock.
    pids: processes below it that were seen.
    """

    machine: Machine
    process: subprocess.Popen[bytes]
    out: Path
    started: float
    pids: set[int] = field(default_factory=set)

    def said(self) -> str:
        """Its output so far."""
        return self.out.read_text(encoding="utf-8")


def put_dataset(dataset: Path, server: int) -> str:
    """Copy a dataset to S3 and return its address."""
    client = direct(server)
    for path in sorted(dataset.rglob("*")):
        if path.is_file():
            client.upload_file(str(path), BUCKET, f"mds/{path.relative_to(dataset)}")
    return f"s3://{BUCKET}/mds"


def age_of(stem: str) -> tuple[int, int]:
    """Batch and epoch of a checkpoint by its name."""
    epoch, batch = stem.removeprefix("ep").split("-ba")
    return int(batch), int(epoch)


def print_report(report: Report) -> None:
    """Print a game, and append it to the file that CHAOS_LOG names."""
    ranks = "1 rank" if report.ranks == 1 else f"{report.ranks} ranks"
    print(
        f"game {report.seed} on {ranks}: {report.starts} starts, {report.again} batches again, {report.seconds:.0f} s",
        flush=True,
    )
    for one in report.faults:
        figures = [one.moment] if one.moment else []
        figures += [f"{one.again} batches again"] if one.again is not None else []
        figures += [f"{one.seconds} s to the next trained batch"] if one.seconds is not None else []
        print(f"  {one.name}: {one.outcome}" + "".join(f", {figure}" for figure in figures), flush=True)
    if path := environment().get("CHAOS_LOG"):
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(asdict(report)) + "\n")
