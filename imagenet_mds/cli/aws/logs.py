"""`imagenet-mds aws logs`: what the instances of a run have said."""

import time
from typing import Annotated

import typer

from imagenet_mds.cli.aws.options import Name, Region, RunName, stack_of
from imagenet_mds.cli.tables import print_line


def logs(
    run: RunName,
    lines: Annotated[int, typer.Option(min=1, help="Number of lines, the last ones.")] = 50,
    follow: Annotated[bool, typer.Option("--follow", help="Go on printing until Ctrl-C.")] = False,
    name: Name = "imagenet-mds",
    region: Region = None,
) -> None:
    """Print what the instances of a run have said."""
    from imagenet_mds_infra.launches import Launch, launches

    stack = stack_of(name, region, dry_run=False)
    Launch.read(launches(stack.bucket), run)
    seen: set[str] = set()
    since = 0
    while True:
        events = stack.account.pages(
            "logs",
            "filter_log_events",
            "events",
            logGroupName=stack.account.log_group,
            logStreamNamePrefix=f"{run}/",
            startTime=since,
        )
        new = [event for event in sorted(events, key=lambda one: one["timestamp"]) if event["eventId"] not in seen]
        for event in new if seen else new[-lines:]:
            print_line(event["message"])
        seen |= {event["eventId"] for event in new}
        since = max([since, *(event["timestamp"] for event in new)])
        if not follow:
            if not new:
                print_line(
                    f"{run} has said nothing yet: an instance starts to write a few minutes after its launch, see "
                    f"`imagenet-mds aws status {run}` and s3://{stack.bucket}/launches/{run}.setup.log",
                    to_stderr=True,
                )
            return
        time.sleep(5)
