"""`imagenet-mds inspect`: a dataset at a glance, one stored sample, or one training batch."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import AsJson, CacheFolder, CacheLimit, DatasetArgument, open_dataset
from imagenet_mds.cli.samples import split_with_sample, training_batch
from imagenet_mds.cli.tables import print_line
from imagenet_mds.errors import UserError
from imagenet_mds.vocabulary import SplitName
from imagenet_mds.words import counted, one_line

if TYPE_CHECKING:
    from imagenet_mds.dataset.access import Dataset
    from imagenet_mds.dataset.manifest import Manifest
    from imagenet_mds.dataset.split_info import SplitInfo
    from imagenet_mds.storage.base import Storage


def inspect(
    dataset: DatasetArgument,
    sample: Annotated[int | None, typer.Option(min=0, help="Index of one sample to show, counted from 0.")] = None,
    split: Annotated[SplitName | None, typer.Option(help="With --sample: its split; train by default.")] = None,
    config: Annotated[
        str | None, typer.Option(help="Show a batch of this training configuration: a YAML file or a shipped name.")
    ] = None,
    epoch: Annotated[
        int | None, typer.Option(min=0, help="With --config: epoch, counted from 0; 0 by default.")
    ] = None,
    batch: Annotated[
        int | None, typer.Option(min=0, help="With --config: batch within the epoch, counted from 0; 0 by default.")
    ] = None,
    ranks: Annotated[int | None, typer.Option(min=1, help="With --config: number of ranks to simulate.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=0, help="With --config: number of loader workers per rank to simulate.")
    ] = None,
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Show a dataset, one of its samples, or a training batch.

    Without --sample and --config it lists the counts, classes, bytes, shards, source and fingerprint of each split.
    """
    if sample is None and split is not None:
        raise UserError("--split selects the split of --sample: pass --sample too, or leave --split out to see both")
    if config is not None:
        if sample is not None:
            raise UserError("pass --sample for one stored sample or --config for a training batch, not both")
        opened = open_dataset(dataset, cache, cache_limit)
        _print_batch(opened, config, epoch=epoch or 0, batch=batch or 0, ranks=ranks, workers=workers, as_json=as_json)
    elif (epoch, batch, ranks, workers) != (None,) * 4:
        raise UserError("--epoch, --batch, --ranks and --workers describe a training batch: pass --config too")
    elif sample is None:
        _print_dataset(dataset, as_json=as_json)
    else:
        _print_sample(dataset, split or "train", sample, as_json=as_json)


def _print_dataset(dataset: str, *, as_json: bool) -> None:
    from imagenet_mds.dataset.access import splits_of
    from imagenet_mds.dataset.manifest import Manifest

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
            print(f"  {counted(one.samples, 'image')}")
            print(f"  {counted(len(one.shards), 'shard')}, {one.size_bytes:,} bytes")


def _manifest_or_info(split: "Storage") -> "Manifest | SplitInfo":
    """Read all that is known about a split: its manifest, or its index if stock tools wrote it."""
    from imagenet_mds.dataset.manifest import read_manifest
    from imagenet_mds.dataset.split_info import read_split_info

    info = read_split_info(split)
    return info if info.classes is None else read_manifest(split)


def _print_split(manifest: "Manifest") -> None:
    from imagenet_mds.cli.tables import report_exceptions

    counts = [entry.samples for entry in manifest.classes]
    print(f"{manifest.split}: {manifest.fingerprint}")
    images, shards = counted(manifest.samples, "image"), counted(len(manifest.shards), "shard")
    print(f"  {images} in {len(counts):,} classes, {min(counts):,} to {max(counts):,} in each")
    print(f"  {shards}, {manifest.size_bytes:,} bytes")
    policy = ", ".join(f"{name} {value}" for name, value in manifest.policy.model_dump().items() if value is not None)
    source = manifest.source
    print(f"  from a {source.kind} of {source.samples:,} images ({source.fingerprint}); {policy}")
    print(f"  written with {', '.join(f'{name} {version}' for name, version in sorted(manifest.versions.items()))}")
    report_exceptions(manifest)


def _print_sample(dataset: str, split_name: str, sample: int, *, as_json: bool) -> None:
    import xxhash

    from imagenet_mds.dataset.manifest import read_keys
    from imagenet_mds.dataset.samples import open_sample, stored_samples

    split, info, names = split_with_sample(dataset, split_name, sample)
    stored = next(stored_samples(split, info, sample))
    record = stored.record
    with open_sample(split, info, stored, decoded=False) as image:
        facts: dict[str, object] = {
            "sample": sample,
            "key": read_keys(split, info.samples)[sample] if info.classes else None,
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
            print_line(f"{name + ':':14} {value}")


def _print_batch(
    dataset: "Dataset", config: str, *, epoch: int, batch: int, ranks: int | None, workers: int | None, as_json: bool
) -> None:
    from rich.console import Console
    from rich.table import Table

    from imagenet_mds_train.config.load import load_config

    seen = training_batch(dataset.split("train"), load_config(config, ranks=ranks), epoch, batch, workers)
    if as_json:
        print(json.dumps([one.as_json() for one in seen], indent=2))
        return
    table = Table("rank", "sample", "class", "key", "crop", "flip", "px", "pixels", box=None, header_style="")
    for one in seen:
        crop, facts = one.crop, one.as_json()
        where = f"{crop.left},{crop.top} {crop.width}x{crop.height}"
        scaled = f" /{crop.denominator}" if crop.denominator > 1 else ""
        row = (one.rank, one.sample, one.label, one.key, where + scaled, "yes" if one.flip else "", facts["size"])
        table.add_row(*(one_line(str(value)) for value in row), facts["pixels_xxh64"])
    Console(width=160, highlight=False).print(table)
