"""`imagenet-mds aws clean`: what is left in the account, and its removal."""

from typing import Annotated

import typer

from imagenet_mds.cli.aws.options import DryRun, Name, Region, Yes, ask, stack_of
from imagenet_mds.cli.tables import print_columns, print_line
from imagenet_mds.errors import EXIT_FAILED, CommandError
from imagenet_mds.words import counted


def clean(
    everything: Annotated[bool, typer.Option("--all", help="What holds work too.")] = False,
    name: Name = "imagenet-mds",
    region: Region = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """List what is left in the account, and remove what no run needs.

    Snapshots, runs, and filled volumes without a snapshot stay without --all. What a run uses now stays in any case.
    """
    from imagenet_mds_infra.leftovers import dollars_per_month, find

    stack = stack_of(name, region, dry_run)
    found = find(stack)
    rows = [
        (
            one.kind,
            one.name,
            one.of,
            f"{one.dollars_per_month:,.2f}",
            "in use" if one.in_use else "stays" if one.holds_work and not everything else "goes",
        )
        for one in found
    ]
    if not rows:
        print_line("nothing is left")
        return
    print_columns(("what", "name", "of", "dollars a month", ""), rows, right=(3,))
    doomed = [one for one, row in zip(found, rows, strict=True) if row[-1] == "goes"]
    if not doomed:
        print_line("nothing is removed")
        return
    if not dry_run:
        ask(f"Remove {counted(len(doomed), 'thing')}, ${dollars_per_month(doomed):,.2f} a month?", yes)
    failed = 0
    for one in doomed:
        try:
            one.remove()
        except (CommandError, OSError) as error:  # the others are removed all the same
            failed += 1
            print_line(f"imagenet-mds: {one.kind} {one.name} is not removed: {error}", to_stderr=True)
            continue
        if not dry_run:
            print_line(f"removed {one.kind} {one.name}")
    if failed:
        raise typer.Exit(EXIT_FAILED)
