"""`imagenet-mds aws cost`: what runs have cost, what is kept costs, where a dataset is best kept."""

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from imagenet_mds.cli.aws.options import IMAGENET_IMAGES, IMAGENET_VAL_IMAGES, Name, Region, stack_of
from imagenet_mds.cli.options import AsJson
from imagenet_mds.cli.tables import print_columns, print_line

_MACHINE = "g4dn.12xlarge"


def cost(
    runs_per_month: Annotated[float, typer.Option(min=0.0, help="Runs of phase 3 a month, to compare.")] = 2.0,
    name: Name = "imagenet-mds",
    region: Region = None,
    as_json: AsJson = False,
) -> None:
    """Show what runs and what is kept cost.

    It also compares the places in which a dataset may be kept.
    """
    from imagenet_mds_infra.homes import homes
    from imagenet_mds_infra.launches import launched
    from imagenet_mds_infra.ledger import Ledger
    from imagenet_mds_infra.leftovers import dollars_per_month, find
    from imagenet_mds_infra.prices import TYPES
    from imagenet_mds_train.config.load import load_config
    from imagenet_mds_train.run.estimate import estimate_hours

    stack = stack_of(name, region, dry_run=False)
    runs = {one: Ledger.of(stack.bucket, one).totals() for one in launched(stack.bucket)}
    kept = find(stack)
    config = load_config("phase3", ())
    machine = TYPES[_MACHINE]
    run_hours = estimate_hours(config, IMAGENET_IMAGES // config.global_batch_size, IMAGENET_VAL_IMAGES).hours[1]
    places = homes(machine.dollars_per_hour, run_hours, config.schedule.epochs, runs_per_month)
    if as_json:
        found: dict[str, Any] = {
            "runs": {one: {"hours": hours, "dollars": dollars} for one, (hours, dollars) in runs.items()},
            "dollars_per_month": dollars_per_month(kept),
            "homes": [asdict(one) | {"dollars": one.monthly(runs_per_month)} for one in places],
        }
        print(json.dumps(found, indent=2))
        return
    print_columns(
        ("run", "hours", "dollars"),
        [(one, f"{hours:.2f}", f"{dollars:,.2f}") for one, (hours, dollars) in runs.items()],
        right=(1, 2),
    )
    print()
    print_columns(
        ("kept", "number", "dollars a month"),
        [
            (kind, str(len(group)), f"{dollars_per_month(group):,.2f}")
            for kind in dict.fromkeys(one.kind for one in kept)
            if (group := [one for one in kept if one.kind == kind])
        ],
        right=(1, 2),
    )
    print()
    print_columns(
        (
            "a dataset kept in",
            "min once",
            "min a run",
            "$ a month",
            "$ a run",
            f"$ with {runs_per_month:g} runs a month",
        ),
        [
            (
                one.name,
                f"{one.minutes_once:.0f}",
                f"{one.minutes_a_run:.0f}",
                f"{one.dollars_a_month:,.2f}",
                f"{one.dollars_a_run:,.2f}",
                f"{one.monthly(runs_per_month):,.2f}",
            )
            for one in places
        ],
        right=range(1, 6),
    )
    print_line("storage and on-demand prices are those of us-east-1 in 2025")
