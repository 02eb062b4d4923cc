"""`imagenet-mds aws`: machines that train, what they cost, and what is left of them."""

import typer

from imagenet_mds.cli.aws.clean import clean
from imagenet_mds.cli.aws.cost import cost
from imagenet_mds.cli.aws.launch import launch
from imagenet_mds.cli.aws.logs import logs
from imagenet_mds.cli.aws.status import status
from imagenet_mds.cli.aws.stop import stop
from imagenet_mds.cli.aws.volume import volume_app
from imagenet_mds.cli.aws.worker import worker
from imagenet_mds.cli.command import Command

aws_app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Rent machines that train, watch them, and leave nothing running. What they need in the account is made by "
    "infra/aws.",
)
aws_app.add_typer(volume_app, name="volume")
for command in (launch, status, logs, stop, cost, clean):
    aws_app.command(cls=Command)(command)
aws_app.command(cls=Command, hidden=True)(worker)
