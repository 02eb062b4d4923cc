"""`imagenet-mds aws stop`: have the running instance save and end."""

from imagenet_mds.cli.aws.options import DryRun, Name, Region, stack_of
from imagenet_mds.cli.tables import print_line


def stop(name: Name = "imagenet-mds", region: Region = None, dry_run: DryRun = False) -> None:
    """Have the running instance save and end. `launch` continues the run."""
    stack = stack_of(name, region, dry_run)
    if not stack.is_busy:
        print_line("nothing runs")
        return
    stack.account.empty_group()
    if not dry_run:
        print_line("the group's size is 0: its instance saves and ends within minutes")
