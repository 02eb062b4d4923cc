"""`imagenet-mds aws volume`: a dataset on a volume, its snapshot, and volumes from that."""

from typing import Annotated

import typer

from imagenet_mds.cli.aws.options import DryRun, Name, Region, Yes, ask, stack_of
from imagenet_mds.cli.command import Command
from imagenet_mds.cli.tables import print_columns, print_line
from imagenet_mds.errors import UserError

volume_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Fill a volume with a dataset, snapshot it, restore it."
)

VolumeName = Annotated[str, typer.Argument(metavar="VOLUME", help="Name given to `volume create`, or vol-...")]


@volume_app.command(cls=Command)
def create(
    volume: Annotated[str, typer.Argument(metavar="VOLUME", help="Name of the new volume.")],
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="Images: s3://bucket/prefix; see `convert`.")],
    options: Annotated[
        list[str] | None, typer.Argument(metavar="OPTION", help="Options of `convert`, after `--`.")
    ] = None,
    size_gb: Annotated[int, typer.Option(min=1, max=16384, help="Size of the volume in GB.")] = 200,
    name: Name = "imagenet-mds",
    region: Region = None,
    dry_run: DryRun = False,
    yes: Yes = False,
) -> None:
    """Have a small machine convert onto a new volume.

    It ends itself.
    """
    from imagenet_mds_infra.launches import refuse_name
    from imagenet_mds_infra.prices import BUILDER, GP3_DOLLARS_PER_GB_MONTH
    from imagenet_mds_infra.volumes import create as create_volume

    refuse_name("VOLUME", volume)
    if not source.startswith("s3://"):
        raise UserError(f"SOURCE {source}: pass an s3:// address, which the machine can read")
    stack = stack_of(name, region, dry_run)
    print_line(
        f"a {BUILDER.name} at ${BUILDER.dollars_per_hour:g} an hour converts onto {size_gb} GB of gp3, which cost "
        f"${size_gb * GP3_DOLLARS_PER_GB_MONTH:,.2f} a month until they are removed"
    )
    if not dry_run:
        ask(f"Make volume {volume}?", yes)
    instance = create_volume(stack, volume, source, list(options or ()), size_gb)
    if not dry_run:
        print_line(f"{instance} fills {volume}: `imagenet-mds aws status {volume}` says how far it is")


@volume_app.command(cls=Command)
def snapshot(volume: VolumeName, name: Name = "imagenet-mds", region: Region = None, dry_run: DryRun = False) -> None:
    """Make a snapshot of a filled volume, and wait for it. The volume can be removed then."""
    from imagenet_mds_infra.volumes import snapshot as make_snapshot

    stack = stack_of(name, region, dry_run)
    found = make_snapshot(stack, volume, print_line)
    if not dry_run:
        print_line(f"{found} is whole: `imagenet-mds aws launch --data {found}`")


@volume_app.command(cls=Command)
def restore(
    snapshot: Annotated[str, typer.Argument(metavar="SNAPSHOT", help="snap-..., or the name of its volume.")],
    zone: Annotated[str, typer.Option(help="Availability zone, us-east-1a for example.")],
    name: Name = "imagenet-mds",
    region: Region = None,
    dry_run: DryRun = False,
) -> None:
    """Make a volume from a snapshot in any zone.

    `launch` does this itself; use it for an instance that you start yourself.
    """
    from imagenet_mds_infra.homes import DATASET_GB
    from imagenet_mds_infra.prices import TYPES
    from imagenet_mds_infra.volumes import restore as restore_volume
    from imagenet_mds_infra.volumes import ways

    stack = stack_of(name, region, dry_run)
    found = restore_volume(stack, snapshot, zone, print_line)
    if not dry_run:
        print_line(f"{found} is there; until it is filled it reads more slowly:")
    machine = TYPES["g4dn.12xlarge"]
    print_columns(
        ("way", "minutes", "dollars of a g4dn.12xlarge", ""),
        [
            (
                way.name,
                f"{way.minutes[0]:.0f} to {way.minutes[1]:.0f}",
                f"{way.dollars[0]:.2f} to {way.dollars[1]:.2f}",
                way.note,
            )
            for way in ways(DATASET_GB, machine.nvme_gb, machine.dollars_per_hour)
        ],
        right=(1, 2),
    )
