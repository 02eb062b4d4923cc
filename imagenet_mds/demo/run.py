"""The demo: draw, convert, train, kill in mid-epoch, resume, evaluate, report.

Each step is a command as a user types it, in its own process, so the demo shows how the program really behaves.
"""

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from imagenet_mds.demo.draw import SHAPES, draw_tree
from imagenet_mds.demo.report import Story, write_report
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, UserError, WorldError

TRAIN_PER_CLASS, VAL_PER_CLASS = 100, 30
STOP_AT_SHARE = 0.4
"""The run is killed after it logged a batch past this share of all batches that is not near the end of an epoch."""

TIMES_CHANCE_WANTED = 5.0
_MARK = ".imagenet-mds-demo"
_NO_BATCH_SECONDS = 600
"""How long a start, or a batch, may take on a machine with other work."""


@dataclass(frozen=True)
class Paths:
    """Where the demo's files are, relative to its folder, which is the working folder of every command."""

    folder: Path

    images: str = "images"
    dataset: str = "mds"
    runs: str = "runs"
    run: str = "runs/demo"

    @property
    def log(self) -> Path:
        """Path of the training log."""
        return self.folder / self.run / "log.jsonl"


def run_demo(folder: Path, *, train_per_class: int = TRAIN_PER_CLASS, val_per_class: int = VAL_PER_CLASS) -> int:
    """Run the whole demo.

    Args:
        folder: folder to work in. An earlier demo in it is removed.
        train_per_class: number of training images per class.
        val_per_class: number of validation images per class.

    Returns:
        The exit status: 0 if the network reached the accuracy it should, 1 if not.

    Raises:
        UserError: the folder contains something other than a demo.
        WorldError: a step failed. It has printed why.
    """
    started = time.monotonic()
    _make_room(folder)
    paths = Paths(folder)
    seconds: dict[str, float] = {}

    def step(name: str, action: Callable[[], Any]) -> Any:
        begun = time.monotonic()
        result = action()
        seconds[name] = time.monotonic() - begun
        return result

    _say(f"Drawing {len(SHAPES)} classes of shapes as an ImageNet tree in {folder / paths.images}")
    step(
        "draw",
        lambda: draw_tree(folder / paths.images, train_per_class=train_per_class, val_per_class=val_per_class),
    )
    convert = ["convert", paths.images, paths.dataset, "--shard-size", "256KiB"]
    step("convert", lambda: _run(folder, convert))
    train = ["train", "--config", "demo", "--data", paths.dataset, "--save", paths.runs]
    killed_at = step("train until the kill", lambda: _run_and_kill(paths, train))
    _say(f"Killed with SIGKILL at batch {killed_at}, as a spot instance may be. Running the same command again:")
    step("train to the end", lambda: _run(folder, train))
    evaluation = json.loads(
        step("evaluate", lambda: _run(folder, ["eval", paths.run, "--data", paths.dataset, "--json"], capture=True))
    )
    story = Story.read(folder, paths.dataset, paths.log, killed_at, evaluation, seconds)
    report = write_report(story, folder)
    _print_summary(story, report, time.monotonic() - started)
    return EXIT_DONE if story.times_chance >= TIMES_CHANCE_WANTED else EXIT_FAILED


def _make_room(folder: Path) -> None:
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file: choose a folder")
    if folder.exists() and any(folder.iterdir()):
        if not (folder / _MARK).exists():
            raise UserError(f"{folder} contains something other than a demo: choose another folder")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / _MARK).touch()


def _command(arguments: list[str]) -> list[str]:
    _say(f"$ imagenet-mds {shlex.join(arguments)}")
    return [sys.executable, "-m", "imagenet_mds", *arguments]


def _run(folder: Path, arguments: list[str], *, capture: bool = False) -> str:
    done = subprocess.run(
        _command(arguments), cwd=folder, stdout=subprocess.PIPE if capture else None, text=True, check=False
    )
    if done.returncode:
        raise WorldError(f"`imagenet-mds {shlex.join(arguments)}` in {folder} ended with status {done.returncode}")
    return done.stdout or ""


def _run_and_kill(paths: Paths, arguments: list[str]) -> int:
    """Start training, kill it in mid-epoch, and return the last batch that it logged."""
    process = subprocess.Popen(_command(arguments), cwd=paths.folder)
    try:
        last, moved_at = None, time.monotonic()
        while process.poll() is None:
            batch = _logged_batch(paths)
            if batch is not None and _is_mid_epoch(paths, batch):
                return batch
            if batch != last:
                last, moved_at = batch, time.monotonic()
            if time.monotonic() - moved_at > _NO_BATCH_SECONDS:
                raise WorldError(
                    f"training in {paths.folder} made no batch in {_NO_BATCH_SECONDS} s: this machine is too busy for "
                    f"the demo, or the training hangs"
                )
            time.sleep(0.02)
    finally:
        process.kill()
        process.wait()
    raise WorldError(f"training in {paths.folder} ended with status {process.returncode} before it could be killed")


def _logged_batch(paths: Paths) -> int | None:
    if not paths.log.exists():
        return None
    lines = [line for line in paths.log.read_text(encoding="utf-8").splitlines() if '"event": "batch"' in line]
    return int(json.loads(lines[-1])["batch"]) if lines else None


def _is_mid_epoch(paths: Paths, batch: int) -> bool:
    """Return whether a batch is late enough, in the middle half of an epoch, and not right after a checkpoint."""
    config = json.loads((paths.folder / paths.run / "run.json").read_bytes())["config"]
    manifest = json.loads((paths.folder / paths.dataset / "train" / "manifest.json").read_bytes())
    per_epoch = manifest["samples"] // config["global_batch_size"]
    every = config["checkpoint"]["every_batches"]
    late = batch >= STOP_AT_SHARE * per_epoch * config["schedule"]["epochs"]
    return late and 4 * (batch % per_epoch) in range(per_epoch, 3 * per_epoch) and batch % every >= every // 2


def _print_summary(story: Story, report: Path, seconds: float) -> None:
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in story.facts():
        table.add_row(name, value)
    table.add_row("time", f"{seconds:.0f} s")
    table.add_row("report", str(report))
    console = Console(width=120, highlight=False)
    console.print()
    console.print(table)
    if story.times_chance < TIMES_CHANCE_WANTED:
        console.print(f"The network did not learn enough: {TIMES_CHANCE_WANTED:g} times chance was expected.")


def _say(text: str) -> None:
    print(f"\n{text}" if not text.startswith("$") else text, flush=True)
