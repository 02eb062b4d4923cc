"""`imagenet-mds eval`: the accuracy of a checkpoint."""

import json
import os
import sys
import warnings
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import CacheFolder, CacheLimit, open_dataset
from imagenet_mds.vocabulary import SplitName

if TYPE_CHECKING:
    from imagenet_mds_train.evaluation.evaluate import Evaluation


def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A .pt file, or a run's folder for its newest checkpoint.")],
    data: Annotated[str, typer.Option(metavar="DATASET", help="Dataset with the classes of the checkpoint.")],
    split: Annotated[SplitName, typer.Option(help="Split to evaluate on.")] = "val",
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON output.")] = False,
) -> None:
    """Measure top-1 and top-5 of a checkpoint, over every sample exactly once."""
    from imagenet_mds.progress import ProgressLine
    from imagenet_mds.storage.atomic import finite
    from imagenet_mds_train.run.folder import find_checkpoint

    path = find_checkpoint(checkpoint, lambda warning: print(f"note: {warning}", file=sys.stderr))
    opened = open_dataset(data, cache, cache_limit).split(split)
    opened.check_available(opened.info.shards)
    for warning in [opened.warning, *opened.verify(opened.info.shards, len(os.sched_getaffinity(0)))]:
        if warning:
            print(f"note: {warning}", file=sys.stderr)
    warnings.simplefilter("ignore")  # what torch and Composer deprecate, as in a rank
    from imagenet_mds_train.evaluation.evaluate import evaluate  # torch and composer, after cheap refusals

    with ProgressLine(f"evaluating on {split}", opened.info.samples, "images") as progress:
        result = evaluate(path, opened, progress.advance)
    if as_json:
        print(json.dumps(finite(asdict(result)), indent=2, allow_nan=False))
    else:
        _print(result)


def _print(result: "Evaluation") -> None:
    from rich.console import Console
    from rich.table import Table

    if result.damaged:
        print(f"note: {result.damaged:,} images did not decode and were not counted", file=sys.stderr)
    table = Table("checkpoint", "split", "images", "top-1", "top-5", "loss", box=None, header_style="")
    weights = " (averaged weights)" if result.averaged else ""
    table.add_row(
        f"{result.checkpoint}{weights}",
        result.split,
        f"{result.samples:,}",
        f"{result.top1:.2%}",
        f"{result.top5:.2%}",
        f"{result.loss:.4f}",
    )
    Console(width=120).print(table)
