"""`imagenet-mds doctor --data`: how fast this machine feeds a training on a dataset, and what holds it back."""

import json
import warnings
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from imagenet_mds.dataset.access import Dataset
from imagenet_mds.doctor.loader import _GPUS, _SIZES_PX, T4_IMAGES_PER_SECOND, Findings, _beginning, measure
from imagenet_mds_train.config.load import load_config


def run_doctor(dataset: Dataset, config: str, overrides: tuple[str, ...], *, as_json: bool) -> None:
    """Measure and say it.

    Raises:
        UserError: no such dataset or configuration.
    """
    warnings.simplefilter("ignore")  # of what torch and Composer deprecate
    train = _beginning(dataset.split("train"))
    settings = load_config(config, overrides, ranks=1)
    batch = min(settings.global_batch_size, train.info.samples)
    settings = settings.model_copy(
        update={"global_batch_size": batch, "data": settings.data.model_copy(update={"subset": None})}
    )
    findings = measure(settings, train)
    if as_json:
        print(json.dumps(asdict(findings) | {"workers": findings.workers, "limit": findings.limit}, indent=2))
        return
    _print(findings, dataset.location)


def _print(found: Findings, data: str) -> None:
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
    table = Table("trained at", *(f"{size} px" for size in _SIZES_PX), box=None, header_style="")
    table.add_row("this loader gives", *(f"{found.loader_at(size):,.0f}" for size in _SIZES_PX))
    for gpus in _GPUS:
        needs = {size: gpus * T4_IMAGES_PER_SECOND * (224 / size) ** 2 for size in _SIZES_PX}
        table.add_row(
            f"{gpus} T4 need{'' if gpus > 1 else 's'}",
            *(f"{need:,.0f}{'' if need <= found.loader_at(size) else ' (short)'}" for size, need in needs.items()),
        )
    Console(width=120, highlight=False).print(table)
    for options, times in found.forms.items():
        print(f"converted with {options}: {f'{times:.2f} times the views' if times != 1 else 'no image would change'}")
