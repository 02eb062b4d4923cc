"""`imagenet-mds find-lr`: a learning-rate sweep over the first batches of a training."""

import json
import math
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import (
    AsJson,
    CacheFolder,
    CacheLimit,
    ConfigName,
    DataLocation,
    Overrides,
    Phase,
    Ranks,
    config_name,
    given_data,
    open_dataset,
)
from imagenet_mds.cli.tables import print_line, print_note
from imagenet_mds.errors import EXIT_DONE, EXIT_STOPPED, UserError
from imagenet_mds.process.streams import forgive_lost_output

if TYPE_CHECKING:
    from imagenet_mds_train.config.schema import TrainConfig
    from imagenet_mds_train.run.start import Start
    from imagenet_mds_train.sweep.curve import Sweep
    from imagenet_mds_train.sweep.report import Found

_FROM_LR = 1e-5
"""fastai's `lr_find` starts at 1e-7, for Adam too; below 1e-5 SGD moves no weight visibly in a few batches."""

_TO_LR, _BATCHES = 10.0, 100
"""Those of fastai's `lr_find`."""

_LEAST_BATCHES = 20  # sweep.curve.LEAST_BATCHES, which is not imported for --help

_SHOWN = ("dataset", "fetched to", "training images", "model", "device", "batch", "algorithms")
"""Lines about a run that are as true of a sweep."""


def find_lr(
    overrides: Overrides = None,
    phase: Phase = None,
    config: ConfigName = None,
    data: DataLocation = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    ranks: Ranks = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Folder for lr.png and lr.json; none is written by default.")
    ] = None,
    from_lr: Annotated[float, typer.Option("--from", metavar="LR", help="Learning rate of the first step.")] = _FROM_LR,
    to_lr: Annotated[float, typer.Option("--to", metavar="LR", help="Learning rate of the last step.")] = _TO_LR,
    batches: Annotated[
        int, typer.Option(min=_LEAST_BATCHES, metavar="N", help="Steps, fewer if the loss diverges before.")
    ] = _BATCHES,
    as_json: AsJson = False,
) -> None:
    """Sweep the learning rate, and suggest one.

    It is raised step by step in a training that is thrown away, while the loss is watched.

    The sweep has the loader, the algorithms, the precision and the ranks of a run, and the image size of its first
    epoch.
    """
    from imagenet_mds.dataset.access import check_available
    from imagenet_mds.process.attempt import attempt
    from imagenet_mds_train.config.load import load_config  # omegaconf and pydantic models
    from imagenet_mds_train.run.folder import RunFolder
    from imagenet_mds_train.run.start import Start
    from imagenet_mds_train.sweep.curve import Sweep

    forgive_lost_output()
    name = config_name(phase, config)
    data = given_data(data)
    if not (0 < from_lr < to_lr < math.inf):
        raise UserError(
            f"--from {from_lr:g} and --to {to_lr:g}: pass two learning rates above 0, the smaller one first"
        )
    if out:
        _refuse_unwritable(out)
    settings = load_config(name, tuple(overrides or ()), ranks)
    sweep = Sweep(from_lr, to_lr, batches)
    dataset = open_dataset(data, cache, cache_limit)
    # The folder of an attempt is removed whatever way this process ends; after SIGKILL, by the next start.
    with attempt() as mine:
        run = RunFolder(mine.temporary / "find-lr")
        start = Start.prepare(settings.for_sweep(), dataset, run, sweep=sweep)
        check_available(start.shards())
        for warning in (*start.warnings, *_sizes(settings)):
            print_note(warning)
        if not as_json:
            _describe(start, sweep)
        run.path.mkdir()
        print("starting the ranks ...", file=sys.stderr, flush=True)
        start = start.with_microbatch_found()
        status = start.launch().status
        result = run.read_result()
    if status != EXIT_DONE:
        if status == EXIT_STOPPED:
            print("imagenet-mds: the sweep was stopped; nothing of it is kept", file=sys.stderr)
        raise typer.Exit(status)
    assert result is not None
    _conclude([math.nan if loss is None else loss for loss in result["losses"]], start.config, sweep, out, as_json)


def _refuse_unwritable(out: Path) -> None:
    """Refuse a folder that cannot be written, before the sweep and without creating it."""
    there = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise UserError(f"--out {out}: {there} is a file: choose a folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"--out {out} cannot be written: choose another folder")


def _sizes(config: "TrainConfig") -> list[str]:
    """A note if the run's images grow."""
    first, last = config.size_at(0), config.augment.size_px
    if first == last:
        return []
    return [f"the run's images grow from {first} to {last} px; the sweep is at {first} px, as the first epoch"]


def _describe(start: "Start", sweep: "Sweep") -> None:
    from imagenet_mds_train.run.description import describe

    rows = [(key, value) for key, value in describe(start) if key in _SHOWN]
    for key, value in (*rows, ("learning rate", f"{sweep.from_lr:g} to {sweep.to_lr:g} in {sweep.batches} batches")):
        print(f"{key + ':':18} {value}", flush=True)


def _conclude(losses: list[float], config: "TrainConfig", sweep: "Sweep", out: Path | None, as_json: bool) -> None:
    """Print and write what the sweep found.

    Raises:
        NoMinimumError: the curve has no minimum; it is written all the same.
        UserError: the files cannot be written.
    """
    from imagenet_mds.storage.atomic import finite
    from imagenet_mds_train.sweep.curve import NoMinimumError, suggest
    from imagenet_mds_train.sweep.report import Found, write_files

    found = Found(sweep, config, losses, None)
    try:
        found = Found(sweep, config, losses, suggest(found.lrs, losses))
    except NoMinimumError as error:
        if out is None:
            raise
        write_files(found, out)
        raise NoMinimumError(f"{error}. The curve is in {out}/lr.png") from None
    if out:
        write_files(found, out)
    if as_json:
        print(json.dumps(finite(found.as_values()), indent=2, allow_nan=False))
        return
    _print(found, out)


def _print(found: "Found", out: Path | None) -> None:
    suggested, optimizer = found.suggestions, found.config.optimizer
    assert suggested is not None
    if len(found.losses) < found.sweep.batches:
        print(f"ended after {len(found.losses)} of {found.sweep.batches} batches, because the loss diverged")
    print(f"lowest loss:       at learning rate {suggested.minimum:.2g}, which is too high to train with")
    for what, lr in (
        ("steepest descent", suggested.steepest),
        ("a tenth of that", suggested.tenth_of_minimum),
    ):
        print(f"{what + ':':18} optimizer.lr={found.configured(lr):.2g}", end="")
        if optimizer.lr_batch_size is None:
            print()
        else:
            print(
                f", for optimizer.lr_batch_size={optimizer.lr_batch_size}: the rate is {lr:.2g} at "
                f"{found.config.global_batch_size:,} images a step"
            )
    print("Pass one of them to `imagenet-mds train`; the smaller one is the safer one")
    if out:
        print_line(f"written:           {out}/lr.png and {out}/lr.json")
