"""The commands and their options, each declared once."""

import json
import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from imagenet_mds import __version__
from imagenet_mds.cli.arguments import CacheFolder, CacheLimit
from imagenet_mds.cli.evaluate import evaluate
from imagenet_mds.cli.train import train
from imagenet_mds.cli.convert import convert
from imagenet_mds.cli.verify import verify
from imagenet_mds.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, CommandError, UserError
from imagenet_mds.process.signals import STOPPED_MESSAGE, handle_stop_signals, stop_cleanly

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Raw ImageNet-1K to verified MDS shards to a trained ResNet-50, resumable at every point.",
)
configs_app = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="The shipped training configurations.")
app.add_typer(configs_app, name="configs")




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


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where it works; made anew if an earlier demo is there.")] = Path(
        "demo"
    ),
) -> None:
    """The whole way on a small data set it draws itself: convert, train, stop, continue, evaluate, report."""
    from imagenet_mds.demo.run import run_demo

    raise typer.Exit(run_demo(folder))


app.command()(convert)
app.command()(verify)


@app.command()
def inspect(
    dataset: Annotated[str, typer.Argument(help="A dataset that `convert` wrote.")],
    sample: Annotated[int | None, typer.Option(min=0, help="Show this one sample, by its place from 0 on.")] = None,
    split: Annotated[Literal["train", "val"] | None, typer.Option(help="The split of the sample; train.")] = None,
    config: Annotated[str | None, typer.Option(help="Show what training by this configuration sees.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="With --config: the epoch, from 0; 0.")] = None,
    batch: Annotated[int | None, typer.Option(min=0, help="With --config: the batch of the epoch, from 0; 0.")] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="With --config: as if trained on so many.")] = None,
    workers: Annotated[int | None, typer.Option(min=0, help="With --config: as if each rank had so many.")] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What a dataset holds: counts, classes, bytes, shards, where it came from, its fingerprint; or one sample, or one
    training batch."""
    from imagenet_mds.cli.arguments import open_dataset
    from imagenet_mds.cli.inspect import inspect_batch, inspect_sample, run_inspect

    if sample is None and split is not None:
        raise UserError("--split says where --sample is: give that too; without, both splits are shown")
    if config is not None:
        if sample is not None:
            raise UserError("give --sample for one stored sample, or --config for a training batch, not both")
        opened = open_dataset(dataset, cache, cache_limit)
        inspect_batch(opened, config, epoch=epoch or 0, batch=batch or 0, ranks=ranks, workers=workers, as_json=as_json)
    elif (epoch, batch, ranks, workers) != (None,) * 4:
        raise UserError("give --config too, a YAML file or a shipped name: it decides what is in a training batch")
    elif sample is None:
        run_inspect(dataset, as_json=as_json)
    else:
        inspect_sample(dataset, split or "train", sample, as_json=as_json)


@app.command()
def preview(
    dataset: Annotated[str, typer.Argument(help="A dataset that `convert` wrote.")],
    file: Annotated[Path, typer.Argument(help="The picture to write, FILE.png.")],
    split: Annotated[Literal["train", "val"] | None, typer.Option(help="The split to show; train.")] = None,
    start: Annotated[int | None, typer.Option(min=0, help="The first sample, by its place; 0.")] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="How many samples.")] = 40,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Samples in a row.")] = 8,
    augmented: Annotated[bool, typer.Option("--augmented", help="As the trainer sees them: a batch.")] = False,
    config: Annotated[str | None, typer.Option(help="With --augmented: the configuration; phase3.")] = None,
    epoch: Annotated[int | None, typer.Option(min=0, help="With --augmented: the epoch, from 0; 0.")] = None,
    batch: Annotated[int | None, typer.Option(min=0, help="With --augmented: the batch, from 0; 0.")] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
) -> None:
    """A contact sheet of labelled images, as they are stored, or as training sees them."""
    from imagenet_mds.cli.arguments import open_dataset
    from imagenet_mds.cli.inspect import preview_batch, run_preview

    if augmented:
        if split is not None or start is not None:
            raise UserError("--split and --start show what is stored: leave them out with --augmented")
        opened = open_dataset(dataset, cache, cache_limit)
        batch_of = {"epoch": epoch or 0, "batch": batch or 0}
        preview_batch(opened, file, config or "phase3", **batch_of, count=count, columns=columns)
    elif (config, epoch, batch) != (None,) * 3:
        raise UserError("give --augmented too: --config, --epoch and --batch say what training sees")
    else:
        run_preview(dataset, file, split=split or "train", start=start or 0, count=count, columns=columns)


@app.command()
def doctor(
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
    data: Annotated[str | None, typer.Option(metavar="DATASET", help="Measure how fast this feeds a training.")] = None,
    config: Annotated[str, typer.Option(help="The configuration that it is trained by.")] = "phase3",
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """What this machine gives: how fast a dataset becomes batches here, and what holds it back."""
    from imagenet_mds.cli.arguments import open_dataset
    from imagenet_mds.cli.doctor import run_doctor

    if data is None:
        raise UserError("give --data DATASET: what `convert` wrote, to measure how fast it becomes batches here")
    run_doctor(open_dataset(data, cache, cache_limit), config, tuple(overrides or ()), as_json=as_json)


@configs_app.command("ls")
def configs_ls() -> None:
    """The shipped configurations, each with its first line."""
    from imagenet_mds.resources import config_names, resource_folder

    for name in config_names():
        first = (resource_folder("configs") / f"{name}.yaml").read_text(encoding="utf-8").splitlines()[0]
        typer.echo(f"{name:8} {first.removeprefix('# ')}")


@configs_app.command("show")
def configs_show(
    name: Annotated[str, typer.Argument(help="A shipped configuration's name, or a YAML file.")],
    overrides: Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...")] = None,
) -> None:
    """A configuration with every default filled in, as JSON."""
    from imagenet_mds_train.config.load import load_config

    typer.echo(json.dumps(load_config(name, overrides or ()).model_dump(mode="json"), indent=2))


app.command()(train)
app.command("eval")(evaluate)

_INTERRUPTED = 130
"""What typer makes of Ctrl-C; no command of ours returns it."""


def main() -> None:
    """The program: run a command and exit with its status."""
    handle_stop_signals(stop_cleanly)
    try:
        status = app(standalone_mode=False)
    except CommandError as error:
        print(f"imagenet-mds: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
    except typer.TyperException as error:
        print(_usage_error(error), file=sys.stderr)
        sys.exit(EXIT_USER)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"imagenet-mds: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(EXIT_FAILED)
    if status == _INTERRUPTED:
        handle_stop_signals(signal.SIG_IGN)  # ignore further signals while exiting
        sys.stderr.write(STOPPED_MESSAGE)
        sys.exit(EXIT_STOPPED)
    sys.exit(status)


def _usage_error(error: typer.TyperException) -> str:
    """What typer finds wrong with what was typed, in one line; the whole help where nothing was typed."""
    message = error.format_message().replace("Value error, ", "")
    if "\n" in message:
        return message
    context: typer.Context | None = getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"imagenet-mds: {message}{stop} See `{context.command_path if context else 'imagenet-mds'} --help`."
