"""The program: registers the commands, and turns errors and signals into one line and an exit status."""

import io
import re
import signal
import sys
from typing import Annotated

import typer

from imagenet_mds import __version__
from imagenet_mds.cli.aws import aws_app
from imagenet_mds.cli.command import Command
from imagenet_mds.cli.configs import configs_app
from imagenet_mds.cli.convert import convert
from imagenet_mds.cli.demo import demo
from imagenet_mds.cli.doctor import doctor
from imagenet_mds.cli.evaluate import evaluate
from imagenet_mds.cli.export import export
from imagenet_mds.cli.find_lr import find_lr
from imagenet_mds.cli.inspect import inspect
from imagenet_mds.cli.predict import predict
from imagenet_mds.cli.preview import preview
from imagenet_mds.cli.replay import replay
from imagenet_mds.cli.runs import runs_app
from imagenet_mds.cli.tables import print_line
from imagenet_mds.cli.train import train
from imagenet_mds.cli.verify import verify
from imagenet_mds.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, CommandError
from imagenet_mds.process.limits import raise_open_files_limit
from imagenet_mds.process.signals import STOPPED_MESSAGE, handle_stop_signals, stop_cleanly
from imagenet_mds.words import one_line

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Raw ImageNet-1K to verified MDS shards to a trained ResNet-50, resumable at every point.",
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"imagenet-mds {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself."""


app.command(cls=Command)(demo)
app.command(cls=Command)(convert)
app.command(cls=Command)(verify)
app.command(cls=Command)(inspect)
app.command(cls=Command)(preview)
app.command(cls=Command)(find_lr)
app.command(cls=Command)(train)
app.command("eval", cls=Command)(evaluate)
app.command(cls=Command)(replay)
app.command(cls=Command)(export)
app.command(cls=Command)(predict)
app.command(cls=Command)(doctor)
app.add_typer(runs_app, name="runs")
app.add_typer(configs_app, name="configs")
app.add_typer(aws_app, name="aws")

_MEANT = {
    "--lr": "optimizer.lr=0.1",
    "--learning-rate": "optimizer.lr=0.1",
    "--batch-size": "global_batch_size=256",
    "--epochs": "schedule.epochs=10",
    "--seed": "seed=1 for training, --seed 1 for convert",
    "--workers": "data.workers_per_rank=8",
    "--momentum": "optimizer.momentum=0.9",
    "--weight-decay": "optimizer.weight_decay=1e-4",
    "--resume": "nothing: the same command again continues",
    "--gpus": "--ranks 4",
    "--output": "--save FOLDER for a run; `convert` takes the destination as its second argument",
    "--resize": "--max-side 400 or --min-side 256",
    "--size": "--max-side 400 or --min-side 256",
    "--num-workers": "--workers 8 for convert, data.workers_per_rank=8 for training",
}
"""What people pass by the names of other programs, and what it is called here."""

_INTERRUPTED = 130
"""The status that typer returns for KeyboardInterrupt. No command of this program returns it."""


def main() -> None:
    """Run a command and exit with its status."""
    handle_stop_signals(stop_cleanly)
    raise_open_files_limit()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names of classes, where the terminal is not UTF-8
    try:
        status = app(standalone_mode=False)
    except CommandError as error:
        print_line(f"imagenet-mds: {error}", to_stderr=True)
        sys.exit(error.exit_status)
    except typer.TyperException as error:
        print(_usage_error(error), file=sys.stderr)
        sys.exit(EXIT_USER)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print_line(f"imagenet-mds: {where}{error.strerror or error}", to_stderr=True)
        sys.exit(EXIT_FAILED)
    if status == _INTERRUPTED:
        handle_stop_signals(signal.SIG_IGN)  # ignore further signals while exiting
        sys.stderr.write(STOPPED_MESSAGE)
        sys.exit(EXIT_STOPPED)
    sys.exit(status)


def _usage_error(error: typer.TyperException) -> str:
    """Format a usage error as one line that refers to the help. If no command was typed, return the help itself."""
    message = error.format_message().replace("Value error, ", "")
    if message.lstrip().startswith("Usage:"):
        return message
    message = one_line(message)
    unknown = re.match(r"No such option: (--[\w-]+)", message)
    if unknown and unknown[1] in _MEANT:
        return f"imagenet-mds: there is no {unknown[1]}: pass {_MEANT[unknown[1]]}"
    context: typer.Context | None = getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"imagenet-mds: {message}{stop} See `{context.command_path if context else 'imagenet-mds'} --help`."
