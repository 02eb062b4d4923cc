"""Options that the commands of `imagenet-mds aws` share, and the deployment that they name."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.tables import print_line
from imagenet_mds.errors import EXIT_STOPPED, UserError

if TYPE_CHECKING:
    from imagenet_mds_infra.account import Account
    from imagenet_mds_infra.stack import Stack

IMAGENET_IMAGES, IMAGENET_VAL_IMAGES = 1_281_167, 50_000

Name = Annotated[str, typer.Option(help="Name of the deployment, as Terraform's variable `name`.")]
Region = Annotated[str | None, typer.Option(help="AWS region; by default that of the AWS configuration.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the calls that would change something, make none.")]
RunName = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that was launched.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do not ask.")]


def account_of(name: str, region: str | None, dry_run: bool) -> "Account":
    """The deployment; in a dry run it prints what it would call.

    Raises:
        UserError: no region is known.
    """
    from imagenet_mds_infra.account import Account

    return Account.of(name, region, (lambda call: print_line(f"would call {call}")) if dry_run else None)


def stack_of(name: str, region: str | None, dry_run: bool) -> "Stack":
    """What Terraform made.

    Raises:
        UserError: there is none, or the credentials do not do.
        WorldError: AWS does not answer.
    """
    from imagenet_mds_infra.stack import Stack

    return Stack.find(account_of(name, region, dry_run))


def ask(question: str, yes: bool) -> None:
    """Ask the user; end the command with status 75 unless the answer is yes.

    Raises:
        UserError: nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise UserError(f"{question} Pass --yes where nobody can be asked")
    if not typer.confirm(question):
        raise typer.Exit(EXIT_STOPPED)
