"""How fast a dataset becomes training batches on this machine, and what limits it."""

import os
import sys
from dataclasses import dataclass, replace

from imagenet_mds.dataset.access import Split
from imagenet_mds.errors import UserError
from imagenet_mds_train.config.schema import TrainConfig

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
    from imagenet_mds_train.data import speed

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
