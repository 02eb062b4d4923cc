"""`imagenet-mds doctor`: what this machine lacks for a training, or how fast it turns a dataset into batches."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imagenet_mds.cli.options import AsJson, CacheFolder, CacheLimit, Overrides, open_dataset
from imagenet_mds.cli.tables import print_line
from imagenet_mds.errors import EXIT_DONE, EXIT_FAILED, UserError

if TYPE_CHECKING:
    from imagenet_mds.doctor.loader import Findings


def doctor(
    overrides: Overrides = None,
    data: Annotated[
        str | None,
        typer.Option(metavar="DATASET", help="Dataset to measure the loader with: a folder or an s3:// address."),
    ] = None,
    save: Annotated[
        list[str] | None,
        typer.Option(metavar="PLACE", help="Folder or s3:// address for runs; may be given several times."),
    ] = None,
    config: Annotated[str, typer.Option(help="Training configuration, a YAML file or a shipped name.")] = "phase3",
    cache: CacheFolder = None,
    cache_limit: CacheLimit = None,
    as_json: AsJson = False,
) -> None:
    """Check what a training needs of this machine, and say what to do.

    With --data it measures how fast a dataset is loaded instead, what limits that, and whether it keeps up with T4s.
    """
    if data is None:
        if overrides:
            raise UserError("pass --data DATASET: settings are those of the loader that is measured")
        raise typer.Exit(_check_machine(save or ["runs"], as_json=as_json))
    if save:
        raise UserError("pass --save or --data: with --data the loader is measured, without it the machine is checked")
    from imagenet_mds.doctor.loader import measure_dataset  # numpy, after a cheap refusal

    dataset = open_dataset(data, cache, cache_limit)
    found = measure_dataset(dataset, config, tuple(overrides or ()))
    if as_json:
        print(json.dumps(asdict(found) | {"workers": found.workers, "limit": found.limit}, indent=2))
    else:
        _print(found, dataset.location)


def _check_machine(places: list[str], *, as_json: bool) -> int:
    from imagenet_mds.doctor.machine import check_machine

    checks = []
    for check in check_machine(places):
        checks.append(check)
        if not as_json:
            hint = f": {check.hint}" if check.hint else ""
            print_line(f"{check.state:5} {check.name:26} {check.found}{hint}")
    if as_json:
        print(json.dumps([asdict(check) for check in checks], indent=2))
    return EXIT_FAILED if any(check.state == "bad" for check in checks) else EXIT_DONE


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
        table.add_row(f"loader, {workers} worker{'' if workers == 1 else 's'}", f"{rate:,.0f}", "")
    Console(width=120, highlight=False).print(table)
    print(f"limit: {found.limit}")
    fewest, auto = found.workers, found.automatic
    better = "about as fast as any number"
    if fewest != auto:
        given = f"{found.loader[fewest]:,.0f}"
        better = f"data.workers_per_rank={fewest}, the fewest that are about as fast as any, gives {given}"
    print(f"workers: auto is {auto} on one rank here, which gives {found.loader[auto]:,.0f} images/s; {better}")
    table = Table("trained at", *(f"{size} px" for size in found.sizes), box=None, header_style="")
    table.add_row("this loader gives at most", *(f"{found.loader_at(size):,.0f}" for size in found.sizes))
    for gpus, needs in found.t4_needs().items():
        table.add_row(
            f"{gpus} T4 train at most on, reckoned",
            *(f"{need:,.0f}{'' if need <= found.loader_at(size) else ' (short)'}" for size, need in needs.items()),
        )
    Console(width=120, highlight=False).print(table)
    for options, times in found.forms.items():
        print(f"crops, if converted with {options}: {_speeds(times)}")


def _speeds(times: dict[int, float]) -> str:
    """Describe ratios of speeds, by training size in pixels. Exactly 1 means that the conversion would change no
    image."""
    if set(times.values()) == {1}:
        return "no image would change"
    return ", ".join(f"{_speed(ratio)} at {size_px} px" for size_px, ratio in times.items())


def _speed(ratio: float) -> str:
    if ratio >= 2:
        return f"{ratio:.1f} times as fast"
    percent = round(100 * abs(ratio - 1))
    return f"{percent}% {'faster' if ratio > 1 else 'slower'}" if percent else "as fast"
