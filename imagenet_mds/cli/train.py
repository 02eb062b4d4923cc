"""`imagenet-mds train` and `eval`: what they say and how they end."""

import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from imagenet_mds.cli.options import open_dataset
from imagenet_mds.dataset.access import Dataset, check_available
from imagenet_mds.errors import EXIT_DONE, EXIT_STOPPED, EXIT_USER, UserError
from imagenet_mds.progress import ProgressLine
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.evaluation.evaluate import evaluate
from imagenet_mds_train.run.folder import RunFolder, find_checkpoint
from imagenet_mds_train.run.start import Start


@dataclass(frozen=True)
class TrainOptions:
    """The options of `train` as they were typed."""

    phase: str | None
    config: str | None
    data: str | None
    cache: Path | None
    cache_limit: str | None
    run_name: str | None
    save: Path
    ranks: int | None
    plan: bool
    overrides: tuple[str, ...]


def run_train(options: TrainOptions) -> int:
    """Start a run or continue it; return the exit status."""
    if (options.phase is None) == (options.config is None):
        raise UserError("give one of --phase 1, 2 or 3 and --config FILE: they say what to train")
    if options.data is None:
        raise UserError("give --data DATASET: the folder that `imagenet-mds convert` wrote")
    name = options.config or f"phase{options.phase}"
    config = load_config(name, options.overrides, options.ranks)
    run_name = Path(name).stem if options.run_name is None else options.run_name
    if not run_name or run_name in (".", "..") or "/" in run_name:
        raise UserError(f"--run-name {run_name!r}: give a folder's name, without slashes")
    run = RunFolder(options.save / run_name)
    dataset = open_dataset(options.data, options.cache, options.cache_limit)
    start = Start.prepare(config, dataset, run)
    for note in start.notes:
        print(f"note: {note}", file=sys.stderr)
    result = run.read_result()
    if result is not None:
        print(f"{run.path} is done: top-1 {result['top1']:.2%}. For another run give --run-name")
        return EXIT_DONE
    for key, value in start.describe():
        print(f"{key + ':':18} {value}", flush=True)
    if options.plan:
        return EXIT_DONE
    with run.lock() as lock:
        # Again, now that nobody else can change the run: another start may have gone on, or ended, in the meantime.
        start = Start.prepare(config, dataset, run)
        if run.read_result() is not None:
            print(f"{run.path} has just been done by another start")
            return EXIT_DONE
        return _run(start, run, lock)


def _run(start: Start, run: RunFolder, lock: int) -> int:
    check_available(start.shards())
    for split, shards in start.shards():
        if split is start.train and (note := split.cache_too_small(shards, start.config.data.order.shuffle_block_size)):
            print(f"note: {note}", file=sys.stderr)
    if start.config.data.verify_shards:
        count = sum(len(shards) for _, shards in start.shards())
        with ProgressLine("verifying shards", count, "shards") as progress:
            notes = start.verify_shards(lambda shard: progress.advance(1))
        for note in notes:
            print(f"note: {note}", file=sys.stderr)
    # Last, for a run that was refused must not hold its name.
    start.begin()
    print("starting the ranks ...", file=sys.stderr, flush=True)
    started = time.monotonic()
    status = start.go(lock)
    if status == EXIT_DONE:
        _print_result(run, time.monotonic() - started)
    elif status == EXIT_STOPPED:
        print(f"{run.path} is stopped: the same command continues it from what is saved", file=sys.stderr)
    elif status != EXIT_USER:
        print(
            f"imagenet-mds: {run.path} failed; what it has saved stays, and once the cause is mended the same command "
            f"continues",
            file=sys.stderr,
        )
    return status


def _print_result(run: RunFolder, seconds: float) -> None:
    result = run.read_result()
    assert result is not None
    figures = f"top-1 {result['top1']:.2%}, top-5 {result['top5']:.2%}"
    print(
        f"{run.path} is done after {result['batches']:,} batches: {figures} ({seconds / 60:.1f} minutes in this start)"
    )


def run_eval(checkpoint: str, dataset: Dataset, *, split: str, as_json: bool) -> None:
    """Evaluate a checkpoint and print the figures."""
    path = find_checkpoint(checkpoint)
    opened = dataset.split(split)
    opened.check_available(opened.info.shards)
    for note in [opened.warning, *opened.verify(opened.info.shards, len(os.sched_getaffinity(0)))]:
        if note:
            print(f"note: {note}", file=sys.stderr)
    with ProgressLine(f"evaluating on {split}", opened.info.samples, "images") as progress:
        result = evaluate(path, opened, progress.advance)
    if as_json:
        print(json.dumps(asdict(result), indent=2))
        return
    table = Table("checkpoint", "split", "images", "top-1", "top-5", "loss", box=None, header_style="")
    weights = " (averaged weights)" if result.averaged else ""
    table.add_row(
        f"{path}{weights}",
        split,
        f"{result.samples:,}",
        f"{result.top1:.2%}",
        f"{result.top5:.2%}",
        f"{result.loss:.4f}",
    )
    Console(width=120).print(table)
