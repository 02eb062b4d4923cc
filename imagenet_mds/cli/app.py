"""The program: registers the commands, and turns errors and signals into one line and an exit status."""

import signal
import sys
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import typer

from imagenet_mds import __version__
from imagenet_mds.cli.configs import configs_app
from imagenet_mds.cli.demo import demo
from imagenet_mds.cli.doctor import doctor
from imagenet_mds.cli.inspect import inspect
from imagenet_mds.cli.options import CacheFolder, CacheLimit, open_dataset
from imagenet_mds.cli.preview import preview
from imagenet_mds.errors import EXIT_FAILED, EXIT_STOPPED, EXIT_USER, CommandError
from imagenet_mds.process.signals import STOPPED_MESSAGE, handle_stop_signals, stop_cleanly

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Raw ImageNet-1K to verified MDS shards to a trained ResNet-50, resumable at every point.",
)


class SplitChoice(str, Enum):
    """The splits to convert."""

    train = "train"
    val = "val"
    both = "both"


class SourceFormat(str, Enum):
    """The layouts that sources come in."""

    auto = "auto"
    tree = "tree"
    kaggle = "kaggle"
    archives = "archives"
    parquet = "parquet"
    cifar10 = "cifar10"


class Check(str, Enum):
    """How thoroughly each image is checked while converting."""

    decode = "decode"
    structure = "structure"
    none = "none"


class EngineChoice(str, Enum):
    """What runs the shard tasks of a conversion."""

    local = "local"
    ray = "ray"


class Phase(str, Enum):
    """The three phases of training."""

    sanity = "1"
    validation = "2"
    production = "3"


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


app.command()(demo)


@app.command()
def convert(
    source: Annotated[
        str,
        typer.Argument(help="Where the images are: class folders, archives, parquet files; a folder, s3://, hf://."),
    ],
    dest: Annotated[str, typer.Argument(help="Where the dataset goes: DEST/train and DEST/val.")],
    split: Annotated[SplitChoice, typer.Option(help="Convert one split alone.")] = SplitChoice.both,
    source_format: Annotated[
        SourceFormat, typer.Option(help="What SOURCE is, where looking at it does not say.")
    ] = SourceFormat.auto,
    verify_source: Annotated[
        bool, typer.Option("--verify-source", help="Compare the official files with their MD5 sums first.")
    ] = False,
    subset: Annotated[
        str | None, typer.Option(help="Keep this many training images: tiny, small, medium, large or a number.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes; as many as processors if not given. S3 takes more.")
    ] = None,
    check: Annotated[Check, typer.Option(help="How each image is checked.")] = Check.decode,
    max_side: Annotated[
        int | None, typer.Option(min=16, help="Scale larger images down to this longer side, in pixels.")
    ] = None,
    min_side: Annotated[
        int | None, typer.Option(min=16, help="Scale larger images down to this shorter side, in pixels.")
    ] = None,
    quality: Annotated[
        int | None, typer.Option(min=1, max=100, help="JPEG quality of what is scaled; 90 if not given.")
    ] = None,
    tiles: Annotated[
        bool, typer.Option("--tiles", help="Add restart markers, lossless, so that training decodes only its crops.")
    ] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="Store pixels, of images scaled to a side: nothing to decode.")
    ] = False,
    shard_size: Annotated[
        str, typer.Option(help="Close a shard at this size of images: 64MB, 16MiB, bytes.")
    ] = "64MiB",
    engine: Annotated[
        EngineChoice, typer.Option(help="Processes of this machine, or a Ray cluster (RAY_ADDRESS).")
    ] = EngineChoice.local,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of the images.")] = 0,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and write nothing.")] = False,
    strict: Annotated[bool, typer.Option("--strict", help="End with status 1 if an image was left out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove another dataset at DEST first.")] = False,
    log_json: Annotated[bool, typer.Option("--log-json", help="Progress, plan and summary as JSON lines.")] = False,
) -> None:
    """Images to MDS shards. The same command again does what is missing."""
    from imagenet_mds.cli.convert import ConvertOptions, run_convert

    options = ConvertOptions(
        source=source,
        dest=dest,
        splits=("train", "val") if split is SplitChoice.both else (split.value,),
        split_given=split is not SplitChoice.both,
        source_format=source_format.value,
        verify_source=verify_source,
        subset=subset,
        workers=workers,
        check=check.value,
        max_side=max_side,
        min_side=min_side,
        quality=quality,
        tiles=tiles,
        raw=raw,
        shard_size=shard_size,
        engine=engine.value,
        seed=seed,
        plan=plan,
        strict=strict,
        overwrite=overwrite,
        log_json=log_json,
    )
    raise typer.Exit(run_convert(options))


@app.command()
def verify(
    dataset: Annotated[str, typer.Argument(help="A dataset that `convert` wrote.")],
    deep: Annotated[bool, typer.Option("--deep", help="Decode every image too.")] = False,
    repair: Annotated[str | None, typer.Option(metavar="SOURCE", help="Rebuild from here what is broken.")] = None,
) -> None:
    """Check every shard against the manifest; list what is broken, or repair it."""
    from imagenet_mds.cli.convert import run_verify

    raise typer.Exit(run_verify(dataset, deep=deep, repair=repair))


app.command()(inspect)
app.command()(preview)


@app.command()
def train(
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="optimizer.lr=0.1 ...")
    ] = None,
    phase: Annotated[Phase | None, typer.Option(help="A shipped configuration: phase1, phase2 or phase3.")] = None,
    config: Annotated[str | None, typer.Option(help="A YAML file, or the name of a shipped configuration.")] = None,
    data: Annotated[
        str | None, typer.Option(metavar="DATASET", help="What `convert` wrote: a folder or s3:// address.")
    ] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    run_name: Annotated[str | None, typer.Option(help="The run's name; the configuration's if not given.")] = None,
    save: Annotated[Path, typer.Option(metavar="FOLDER", help="Where runs are kept.")] = Path("runs"),
    ranks: Annotated[int | None, typer.Option(min=1, help="Processes, one a GPU.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be done, and start nothing.")] = False,
) -> None:
    """Train a ResNet on a dataset. The same command again continues the run."""
    from imagenet_mds.cli.train import TrainOptions, run_train

    options = TrainOptions(
        phase=phase.value if phase else None,
        config=config,
        data=data,
        cache=cache,
        cache_limit=cache_limit,
        run_name=run_name,
        save=save,
        ranks=ranks,
        plan=plan,
        overrides=tuple(overrides or ()),
    )
    raise typer.Exit(run_train(options))


@app.command("eval")
def evaluate(
    checkpoint: Annotated[str, typer.Argument(help="A .pt file, or the folder of a run: its newest.")],
    data: Annotated[str, typer.Option(metavar="DATASET", help="A dataset with the classes it was trained on.")],
    split: Annotated[Literal["train", "val"], typer.Option(help="The split to evaluate on.")] = "val",
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Top-1 and top-5 of a checkpoint, over every sample exactly once."""
    from imagenet_mds.cli.train import run_eval

    run_eval(checkpoint, open_dataset(data, cache, cache_limit), split=split, as_json=as_json)


app.command()(doctor)
app.add_typer(configs_app, name="configs")

_INTERRUPTED = 130
"""The status that typer returns for KeyboardInterrupt. No command of this program returns it."""


def main() -> None:
    """Run a command and exit with its status."""
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
    """Format a usage error as one line that refers to the help. If no command was typed, return the help itself."""
    message = error.format_message().replace("Value error, ", "")
    if "\n" in message:
        return message
    context: typer.Context | None = getattr(error, "ctx", None)
    stop = "" if message.endswith((".", "?", "!")) else "."
    return f"imagenet-mds: {message}{stop} See `{context.command_path if context else 'imagenet-mds'} --help`."
