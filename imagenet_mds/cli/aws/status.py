"""`imagenet-mds aws status`: how far launches are, and what they have cost."""

import json
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


def status(
    run: Annotated[str | None, typer.Argument(metavar="RUN", help="Name of a run; all by default.")] = None,
    name: Name = "imagenet-mds",
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """Show how far launches are, and what they have cost.

    State, epoch, accuracy, images/s, interruptions, dollars so far, time left.
    """
    from imagenet_mds_infra.launches import launched

    stack = stack_of(name, region, dry_run=False)
    names = [run] if run else launched(stack.bucket)
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
    from imagenet_mds_infra.state import State
    from imagenet_mds_train.history.runs import find_run

    state = State.of(stack, run)
    try:
        found = find_run(f"s3://{stack.bucket}/runs/{run}")
    except (CommandError, OSError):  # it has not begun, or is a volume
        found = None
    figures = found.figures() if found else {}
    hours, dollars = state.hours_and_dollars
    return {
        "run": run,
        "state": state.words,
        "epoch": figures.get("epoch"),
        "epochs": figures.get("epochs"),
        "top1": figures.get("top1"),
        "images_per_second": figures.get("images_per_second"),
        "interruptions": state.interruptions,
        "instances": [asdict(one) for one in state.machines],
        "hours": hours,
        "dollars": dollars,
        "hours_left": None if state.end else _hours_left(found, state.launch.images_per_epoch),
        "words": state.end.words if state.end and state.end.reason != "done" else "",
    }


def _hours_left(run: "Run | None", images_per_epoch: int | None) -> float | None:
    from imagenet_mds_train.run.estimate import remaining_work

    if run is None or not images_per_epoch or not run.history.images_per_second:
        return None
    batches = images_per_epoch // run.config.global_batch_size
    return remaining_work(run.config, batches, run.history.batch) / run.history.images_per_second / 3600
