"""`imagenet-mds inspect` and `preview`: a dataset in a screen, a sample, a picture."""

import io
import itertools
import json
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash
from PIL import Image
from rich.console import Console
from rich.table import Table

from imagenet_mds.cli.tables import report_exceptions
from imagenet_mds.dataset.access import Dataset, Split, splits_of
from imagenet_mds.dataset.decompress import unpacked
from imagenet_mds.dataset.manifest import Manifest, read_keys, read_manifest
from imagenet_mds.dataset.samples import open_sample, stored_samples
from imagenet_mds.dataset.split_info import SplitInfo, read_split_info
from imagenet_mds.errors import UserError, WorldError
from imagenet_mds.report.contact_sheet import contact_sheet
from imagenet_mds.storage import open_storage
from imagenet_mds.storage.atomic import write_atomic
from imagenet_mds.storage.base import Readable, Storage
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig

if TYPE_CHECKING:
    from imagenet_mds_train.data.peek import Seen


def run_inspect(dataset: str, *, as_json: bool) -> None:
    """Print what each split holds."""
    found = [_manifest_or_info(split) for split in splits_of(dataset)]
    if as_json:
        values = {one.split: one.model_dump(mode="json") if isinstance(one, Manifest) else asdict(one) for one in found}
        print(json.dumps(values, indent=2))
        return
    for one in found:
        if isinstance(one, Manifest):
            _print_split(one)
        else:
            print(f"{one.split}: {one.fingerprint}, without a manifest: its classes are numbers")
            print(f"  {one.samples:,} images")
            print(f"  {len(one.shards):,} shards, {one.size_bytes:,} bytes")


def _manifest_or_info(split: Storage) -> Manifest | SplitInfo:
    """All that is known of a split: its manifest, or what the index of stock tools says."""
    info = read_split_info(split)
    return info if info.classes is None else read_manifest(split)


def _print_split(manifest: Manifest) -> None:
    counts = [entry.samples for entry in manifest.classes]
    print(f"{manifest.split}: {manifest.fingerprint}")
    print(f"  {manifest.samples:,} images in {len(counts):,} classes, {min(counts):,} to {max(counts):,} in each")
    print(f"  {len(manifest.shards):,} shards, {manifest.size_bytes:,} bytes")
    policy = ", ".join(f"{name} {value}" for name, value in manifest.policy.model_dump().items() if value is not None)
    source = manifest.source
    print(f"  from a {source.kind} of {source.samples:,} images ({source.fingerprint}); {policy}")
    print(f"  written with {', '.join(f'{name} {version}' for name, version in sorted(manifest.versions.items()))}")
    report_exceptions(manifest)


def inspect_sample(dataset: str, split_name: str, sample: int, *, as_json: bool) -> None:
    """Print what one sample is and where it stands.

    Raises:
        UserError: the split has no such sample.
        WorldError: it, or its shard, is damaged.
    """
    split, info, names = _split_with(dataset, split_name, sample)
    stored = next(stored_samples(split, info, sample))
    record = stored.record
    with open_sample(split, info, stored, decoded=False) as image:
        facts: dict[str, object] = {
            "sample": sample,
            "key": read_keys(split)[sample] if info.classes else None,
            "class": record.label,
            "wnid": info.classes[record.label] if info.classes else None,
            "name": names[record.label] if names else None,
            "shard": stored.shard,
            "place": stored.place,
            "source_index": record.index,
            "bytes": len(record.image),
            "xxh64": xxhash.xxh64_hexdigest(record.image),
            "width": image.width,
            "height": image.height,
            "mode": image.mode,
        }
    if as_json:
        print(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        if value is not None:
            print(f"{name + ':':14} {value}")


def run_preview(dataset: str, file: Path, *, split: str, start: int, count: int, columns: int) -> None:
    """Write a contact sheet of stored samples, in stored order.

    Raises:
        UserError: no PNG's name, no folder for it, or the split has no sample `start`.
        WorldError: the file cannot be written, or a sample, or its shard, is damaged.
    """
    _refuse_file(file)
    storage, info, names = _split_with(dataset, split, start)
    pictures = [
        (_name(names, stored.record.label), open_sample(storage, info, stored))
        for stored in itertools.islice(stored_samples(storage, info, start), count)
    ]
    _write_sheet(file, pictures, columns)
    print(f"{file}: {len(pictures)} samples of {storage.location} from number {start:,} on")


def inspect_batch(
    dataset: Dataset, config: str, *, epoch: int, batch: int, ranks: int | None, workers: int | None, as_json: bool
) -> None:
    """Print what training sees in one batch.

    Raises:
        UserError: no such configuration, dataset or batch.
    """
    seen = _training_batch(dataset.split("train"), load_config(config, ranks=ranks), epoch, batch, workers)
    if as_json:
        print(json.dumps([one.as_json() for one in seen], indent=2))
        return
    table = Table("rank", "sample", "class", "key", "crop", "flip", "px", "pixels", box=None, header_style="")
    for one in seen:
        crop, facts = one.crop, one.as_json()
        where = f"{crop.left},{crop.top} {crop.width}x{crop.height}"
        scaled = f" /{crop.denominator}" if crop.denominator > 1 else ""
        row = (one.rank, one.sample, one.label, one.key, where + scaled, "yes" if one.flip else "", facts["size"])
        table.add_row(*map(str, row), facts["pixels_xxh64"])
    Console(width=160, highlight=False).print(table)


def preview_batch(
    dataset: Dataset, file: Path, config: str, *, epoch: int, batch: int, count: int, columns: int
) -> None:
    """Write a contact sheet of what training sees in one batch.

    Raises:
        UserError: as `inspect_batch`, and no PNG's name or no folder for it.
        WorldError: the file cannot be written.
    """
    _refuse_file(file)
    train = dataset.split("train")
    names = _names(train.storage, train.info)
    seen = _training_batch(train, load_config(config), epoch, batch, None)
    pictures = [(_name(names, one.label), Image.fromarray(one.pixels)) for one in itertools.islice(seen, count)]
    _write_sheet(file, pictures, columns)
    print(f"{file}: {len(pictures)} samples of batch {batch:,} of epoch {epoch:,}, as {config} trains on them")


def _training_batch(train: Split, config: TrainConfig, epoch: int, batch: int, workers: int | None) -> "Iterator[Seen]":
    subset = config.data.subset_samples()
    if subset is not None and (train.info.classes is None or subset > train.info.samples):
        config = config.model_copy(update={"data": config.data.model_copy(update={"subset": None})})
    warnings.simplefilter("ignore")  # of what torch and Composer deprecate
    from imagenet_mds_train.data.peek import training_batch

    workers = config.data.workers_per_rank if workers is None else workers
    return training_batch(config, train, epoch=epoch, batch=batch, workers=workers)


def _refuse_file(file: Path) -> None:
    if file.suffix.lower() != ".png":
        raise UserError(f"{file}: give a name that ends in .png")
    if not file.parent.is_dir():
        raise UserError(f"{file}: there is no folder {file.parent}; make it first")


def _write_sheet(file: Path, pictures: Sequence[tuple[str, Image.Image]], columns: int) -> None:
    buffer = io.BytesIO()
    contact_sheet(pictures, columns=min(columns, len(pictures))).save(buffer, "PNG")
    try:
        write_atomic(file, buffer.getvalue())
    except OSError as error:
        raise WorldError(f"{file} cannot be written: {error.strerror}") from None


def _split_with(dataset: str, split: str, sample: int) -> tuple[Readable, SplitInfo, list[str] | None]:
    """A split that has this sample, what it holds, and its classes' names for people."""
    storage = open_storage(dataset).child(split)
    info = read_split_info(storage)
    if sample >= info.samples:
        raise UserError(f"{storage.location} has no sample {sample:,}: it has {info.samples:,}, counted from 0")
    return unpacked(storage, info), info, _names(storage, info)


def _names(split: Storage, info: SplitInfo) -> list[str] | None:
    return [entry.name for entry in read_manifest(split).classes] if info.classes else None


def _name(names: list[str] | None, label: int) -> str:
    return names[label] if names else f"class {label}"
