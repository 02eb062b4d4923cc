"""`imagenet-mds doctor --data`: how fast this machine feeds a training on a dataset, and what holds it back."""

import json
import os
import sys
import warnings
from dataclasses import asdict, dataclass, replace

from rich.console import Console
from rich.table import Table

from imagenet_mds.config import TrainConfig, load_config
from imagenet_mds.dataset.access import Dataset, Split
from imagenet_mds.errors import UserError

T4_IMAGES_PER_SECOND = 500
"""What one T4 trains at 224 px in fp16: four of them make ImageNet's 90 epochs in 16 hours with it. Arithmetic, not
measured; other sizes by their area."""

_SIZES_PX = (224, 176, 128)
_GPUS = (1, 2, 4)
_FILES = 64
_FETCHED_BYTES = 512 << 20
"""Of a dataset that lies elsewhere, its beginning is measured: shards of so many bytes."""

_SHORT_OF_WORKERS = 0.97
"""More workers are worth it while they give more than a few hundredths."""

_FORMS: dict[str, tuple[str, dict[str, int]]] = {
    "--tiles": ("tiles", {}),
    "--max-side 400": ("file", {"max_side": 400}),
    "--max-side 400 --tiles": ("tiles", {"max_side": 400}),
    "--raw --min-side 256": ("raw", {"min_side": 256}),
}


@dataclass(frozen=True)
class Findings:
    """What was measured, images a second unless said; `loader` by workers. `sizes`, by the training size in pixels, and
    `forms`, by the options of `convert`, are how many times as fast views are then, 1 where no image would change."""

    storage_bytes_per_second: float
    image_bytes: float
    read: float
    decode: float
    crop: float
    view: float
    loader: dict[int, float]
    sizes: dict[int, float]
    forms: dict[str, float]
    processors: int
    size_px: int

    @property
    def workers(self) -> int:
        """The fewest workers that give nearly what any number gives."""
        best = max(self.loader.values())
        return min(number for number, rate in self.loader.items() if rate >= _SHORT_OF_WORKERS * best)

    def loader_at(self, size_px: int) -> float:
        """What the loader gives at a training size: what was measured, times what that size makes of the views."""
        return max(self.loader.values()) * self.sizes[size_px]

    @property
    def limit(self) -> str:
        """What holds the loader back."""
        best = max(self.loader.values())
        if self.storage_bytes_per_second / self.image_bytes < 1.2 * best:
            return "the storage"
        if self.read < 1.2 * self.view:
            return "reading samples out of the shards"
        if self.workers < max(self.loader):
            return "the processors: more workers do not help"
        what = "RandAugment" if self.view < 0.5 * self.crop else "decoding"
        return f"the processors, and most of their time goes into {what}"


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


def _beginning(train: Split) -> Split:
    """The split, or of one that lies elsewhere as much as is worth fetching for a measurement."""
    if train.shard_cache.remote is None:
        return train
    samples = size_bytes = 0
    for shard in train.info.shards:
        if samples and size_bytes + shard.size_bytes > _FETCHED_BYTES:
            break
        samples, size_bytes = samples + shard.samples, size_bytes + shard.size_bytes
    shards = train.info.prefix(samples)
    train.check_available(shards)
    return replace(train, info=replace(train.info, samples=samples, shards=tuple(shards)))


def measure(config: TrainConfig, train: Split) -> Findings:
    """Measure every part, about a second each, and the loader with several numbers of workers."""
    from imagenet_mds_convert.images.policy import Scaling
    from imagenet_mds_convert.images.prepare import prepare
    from imagenet_mds_convert.sources.base import Unusable
    from imagenet_mds_train import speed

    info = train.info
    processors = len(os.sched_getaffinity(0))
    print("measuring, half a minute ...", file=sys.stderr, flush=True)
    # First of all, for it is what fetches.
    storage = speed.storage_bytes_per_second(train)
    files = speed.stored_files(config, train, _FILES)
    parts = speed.measure_parts(config, train, files)
    forms: dict[str, float] = {}
    if not info.raw:
        for options, (form, sides) in _FORMS.items():
            try:
                made = [prepare(data, "none", Scaling(**sides), form).image for data in files]  # type: ignore[arg-type] # of the table
            except Unusable as reason:
                where = train.storage.parent.location
                raise UserError(
                    f"{where}: a stored image is damaged ({reason}): see `imagenet-mds verify {where} --deep`"
                ) from None
            forms[options] = 1.0 if made == files else speed.view_ratio(config, files, stored=made)
    tried = sorted({0, 1, 2, *(processors * share // 4 for share in (2, 3, 4))})
    return Findings(
        storage_bytes_per_second=storage,
        image_bytes=info.size_bytes / info.samples,
        read=parts.read,
        decode=parts.decode,
        crop=parts.crop,
        view=parts.view,
        loader={number: speed.measure_loader(config, train, number) for number in tried},
        sizes={size_px: speed.view_ratio(config, files, size_px=size_px) for size_px in _SIZES_PX},
        forms=forms,
        processors=processors,
        size_px=config.augment.size_px,
    )


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
