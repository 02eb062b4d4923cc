"""`imagenet-mds aws status`: how far launches are, and what they have cost."""

import json
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from imagenet_mds.cli.aws.options import Name, Region, stack_of
from imagenet_mds.cli.options import AsJson
from imagenet_mds.cli.tables import print_columns, print_line
from imagenet_mds.errors import CommandError
from imagenet_mds.words import duration

if TYPE_CHECKING:
    from imagenet_mds_infra.stack import Stack
    from imagenet_mds_train.history.runs import Run

_SILENT_SECONDS = 300.0
"""An instance that has not written for this long is gone."""


def status(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run; all by default.")] = None,
    name: Name = "imagenet-mds",
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """Show how far launches are, and what they have cost.

    State, epoch, accuracy, images/s, interruptions, dollars so far, time left.
    """
    from imagenet_mds_infra.launches import Launch, launches

    stack = stack_of(name, region, dry_run=False)
    storage = launches(stack.bucket)
    if run is not None:
        Launch.read(storage, run)
    names = (
        [run]
        if run
        else sorted(
            one.removesuffix(".json")
            for one in storage.list_names()
            if one.endswith(".json") and not one.endswith(".end.json")
        )
    )
    rows = [_status(stack, one) for one in names]
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    if not rows:
        print_line("nothing was launched: `imagenet-mds aws launch --help`", to_stderr=True)
        return
    shown = [
        (
            row["run"],
            row["state"],
            "-" if row["epoch"] is None else f"{row['epoch']}/{row['epochs']}",
            "-" if row["top1"] is None else f"{row['top1']:.2%}",
            "-" if row["images_per_second"] is None else f"{row['images_per_second']:,.0f}",
            str(row["interruptions"]),
            f"{row['dollars']:,.2f}",
            "-" if row["hours_left"] is None else duration(row["hours_left"]),
        )
        for row in rows
    ]
    print_columns(
        ("run", "state", "epoch", "top-1", "images/s", "interruptions", "dollars", "left"), shown, right=range(2, 8)
    )
    for row in rows:
        if row["words"]:
            print_line(f"{row['run']}: {row['words']}")


def _status(stack: "Stack", run: str) -> dict[str, Any]:
    from imagenet_mds_infra.account import RUN_TAG, tag_of
    from imagenet_mds_infra.launches import Launch, launches
    from imagenet_mds_infra.ledger import Ledger
    from imagenet_mds_infra.worker import read_end
    from imagenet_mds_train.history.runs import find_run

    storage = launches(stack.bucket)
    wanted = Launch.read(storage, run)
    end = read_end(storage, run)
    machines = Ledger.of(stack.bucket, run).machines()
    has_group = wanted.in_group and tag_of(stack.group, RUN_TAG) == run and stack.is_busy
    instances = [one["InstanceId"] for one in stack.group["Instances"]] if has_group else []
    lives = bool(machines and machines[-1].end is None and time.time() - machines[-1].seen < _SILENT_SECONDS)
    if end:
        state = {"done": "finished"}.get(end.reason, end.reason)
    elif lives:
        state = "running"
    elif instances:
        state = "starting"
    elif has_group:
        state = "waiting for an instance"
    else:
        state = "filling" if not wanted.in_group and not machines else "stopped"
    try:
        found = find_run(f"s3://{stack.bucket}/runs/{run}")
    except (CommandError, OSError):
        found = None
    figures = found.figures() if found else {}
    hours, dollars = Ledger.of(stack.bucket, run).totals()
    return {
        "run": run,
        "state": state,
        "epoch": figures.get("epoch"),
        "epochs": figures.get("epochs"),
        "top1": figures.get("top1"),
        "images_per_second": figures.get("images_per_second"),
        "interruptions": sum(one.end == "interrupted" or (one.end is None and one != machines[-1]) for one in machines),
        "instances": [asdict(one) for one in machines],
        "hours": hours,
        "dollars": dollars,
        "hours_left": None if end else _hours_left(found, wanted.images_per_epoch),
        "words": end.words if end and end.reason != "done" else "",
    }


def _hours_left(run: "Run | None", images_per_epoch: int | None) -> float | None:
    from imagenet_mds_train.run.estimate import remaining_work

    if run is None or not images_per_epoch or not run.history.images_per_second:
        return None
    batches = images_per_epoch // run.config.global_batch_size
    return remaining_work(run.config, batches, run.history.batch) / run.history.images_per_second / 3600
