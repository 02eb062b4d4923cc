"""`imagenet-mds doctor`: how fast this machine turns a dataset into training batches, and what limits it."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import AsJson, CacheFolder, CacheLimit, DataLocation, Overrides, given_data, open_dataset

if TYPE_CHECKING:
    from imagenet_mds.doctor.loader import Findings


def doctor(
    overrides: Overrides = None,
    data: DataLocation = None,
    config: Annotated[str, typer.Option(help="Training configuration, a YAML file or a shipped name.")] = "phase3",
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine loads a dataset for training.

    It also reports what limits the loader, and whether it keeps up with T4 GPUs.
    """
    data = given_data(data)
    from imagenet_mds.doctor.loader import measure_dataset  # numpy, after a cheap refusal

    dataset = open_dataset(data, cache, cache_limit)
    found = measure_dataset(dataset, config, tuple(overrides or ()))
    if as_json:
        print(json.dumps(asdict(found) | {"workers": found.workers, "limit": found.limit}, indent=2))
    else:
        _print(found, dataset.location)


def _print(found: "Findings", data: str) -> None:
    from rich.console import Console
    from rich.table import Table

    print(
        f"{data}: images of {found.image_bytes / 1000:,.0f} kB, trained on at {found.size_px} px, "
        f"{found.processors} processors here"
    )
    table = Table("part", "images/s", "", box=None, header_style="")
    storage = found.storage_bytes_per_second
    table.add_row(
        "storage", f"{storage / found.image_bytes:,.0f}", f"{storage / 1e6:,.0f} MB/s: fetched, or from the disk"
    )
    table.add_row("bytes only", f"{found.read:,.0f}", "out of the shards, one process")
    table.add_row("whole decode", f"{found.decode:,.0f}", "one process")
    table.add_row("crop", f"{found.crop:,.0f}", "its decode, resize and flip, one process")
    table.add_row("with augmentation", f"{found.view:,.0f}", "RandAugment, if configured, one process")
    for workers, rate in found.loader.items():
        table.add_row(f"loader, {workers} workers", f"{rate:,.0f}", "")
    Console(width=120, highlight=False).print(table)
    print(f"limit: {found.limit}")
    print(
        f"workers: data.workers_per_rank={found.workers} on one rank gives {found.loader[found.workers]:,.0f} images/s"
    )
    table = Table("trained at", *(f"{size} px" for size in found.sizes), box=None, header_style="")
    table.add_row("this loader gives", *(f"{found.loader_at(size):,.0f}" for size in found.sizes))
    for gpus, needs in found.t4_needs().items():
        table.add_row(
            f"a ResNet-50 on {gpus} T4 needs",
            *(f"{need:,.0f}{'' if need <= found.loader_at(size) else ' (short)'}" for size, need in needs.items()),
        )
    Console(width=120, highlight=False).print(table)
    for options, times in found.forms.items():
        print(f"converted with {options}: {_speed(times)}")


def _speed(times: float) -> str:
    """Describe a ratio of speeds. Exactly 1 means that the conversion would change no image."""
    if times == 1:
        return "no image would change"
    return f"{times - 1:.0%} faster" if times > 1 else f"{1 - times:.0%} slower"
