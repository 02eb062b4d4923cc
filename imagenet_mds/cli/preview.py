"""`imagenet-mds preview`: a contact sheet of stored samples, or of a training batch."""

import io
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import CacheFolder, CacheLimit, DatasetArgument, open_dataset
from imagenet_mds.cli.samples import class_name, class_names, split_with_sample, training_batch
from imagenet_mds.cli.tables import print_line
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.vocabulary import SplitName
from imagenet_mds.words import counted

if TYPE_CHECKING:
    from PIL import Image

    from imagenet_mds.dataset.access import Dataset


def preview(
    dataset: DatasetArgument,
    file: Annotated[Path, typer.Argument(help="Image file to write, FILE.png.")],
    split: Annotated[SplitName | None, typer.Option(help="Split to show; train by default.")] = None,
    start: Annotated[
        int | None, typer.Option(min=0, help="Index of the first sample, counted from 0; 0 by default.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, max=1000, help="Number of samples.")] = 40,
    columns: Annotated[int, typer.Option(min=1, max=100, help="Samples per row.")] = 8,
    augmented: Annotated[
        bool, typer.Option("--augmented", help="Show a training batch, augmented, instead of stored samples.")
    ] = False,
    config: Annotated[
        str | None, typer.Option(help="With --augmented: training configuration; phase3 by default.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="With --augmented: epoch, counted from 0; 0 by default.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=0, help="With --augmented: batch within the epoch, counted from 0; 0 by default.")
    ] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
) -> None:
    """Write a contact sheet of stored or augmented images."""
    if augmented:
        if split is not None or start is not None:
            raise UserError("--split and --start select stored samples: leave them out with --augmented")
        opened = open_dataset(dataset, cache, cache_limit)
        batch_of = {"epoch": epoch or 0, "batch": batch or 0}
        _preview_batch(opened, file, config or "phase3", **batch_of, count=count, columns=columns)
    elif (config, epoch, batch) != (None,) * 3:
        raise UserError("--config, --epoch and --batch describe a training batch: pass --augmented too")
    else:
        _preview_stored(dataset, file, split=split or "train", start=start or 0, count=count, columns=columns)


def _preview_stored(dataset: str, file: Path, *, split: str, start: int, count: int, columns: int) -> None:
    from imagenet_mds.dataset.samples import open_sample, stored_samples

    _check_file(file)
    storage, info, names = split_with_sample(dataset, split, start)
    images = [
        (class_name(names, stored.record.label), open_sample(storage, info, stored))
        for stored in itertools.islice(stored_samples(storage, info, start), count)
    ]
    _write_sheet(file, images, columns)
    fewer = f"; it has no more than {info.samples:,}" if len(images) < count else ""
    print_line(f"{file}: {counted(len(images), 'sample')} of {storage.location} from number {start:,} on{fewer}")


def _preview_batch(
    dataset: "Dataset", file: Path, config: str, *, epoch: int, batch: int, count: int, columns: int
) -> None:
    from PIL import Image

    from imagenet_mds_train.config.load import load_config

    _check_file(file)
    train = dataset.split("train")
    names = class_names(train.storage, train.info)
    seen = training_batch(train, load_config(config), epoch, batch, None)
    images = [(class_name(names, one.label), Image.fromarray(one.pixels)) for one in itertools.islice(seen, count)]
    _write_sheet(file, images, columns)
    fewer = f"; a batch has no more than {len(images)}" if len(images) < count else ""
    shown = counted(len(images), "sample")
    print_line(f"{file}: {shown} of batch {batch:,} of epoch {epoch:,}, as {config} trains on them{fewer}")


def _check_file(file: Path) -> None:
    if file.suffix.lower() != ".png":
        raise UserError(f"{file}: choose a name that ends in .png")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; create it first")


def _write_sheet(file: Path, images: "Sequence[tuple[str, Image.Image]]", columns: int) -> None:
    from imagenet_mds.report.contact_sheet import contact_sheet
    from imagenet_mds.storage.atomic import write_atomic

    buffer = io.BytesIO()
    contact_sheet(images, columns=min(columns, len(images))).save(buffer, "PNG")
    try:
        write_atomic(file, buffer.getvalue())
    except OSError as error:
        raise WorldError(f"{file} cannot be written: {error.strerror}") from None
