"""How fast a dataset becomes training batches on this machine, and what limits it."""

import sys
import warnings
from dataclasses import dataclass, replace

from imagenet_mds.dataset.access import Dataset, Split
from imagenet_mds.errors import UserError
from imagenet_mds.process.processors import usable_processors
from imagenet_mds.vocabulary import StoredForm
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.run.estimate import HIGH, T4

_T4_COUNTS = (1, 2, 4)
_SIZES_PX = (224, 176, 128, 88)
_FILES = 64
_FETCHED_BYTES = 512 << 20
"""Size of the shards to fetch and measure, the first ones, if the dataset is not read in place."""

_MOST_IN_A_BATCH = 128
"""Images of a batch here. A phase's own may be more than a small split has for each worker, or than come in a
second."""

_SHORT_OF_WORKERS = 0.97
"""More workers are not worth it once the loader reaches this share of its best speed."""

_FORMS: dict[str, tuple[StoredForm, dict[str, int], bool]] = {
    "--tiles": ("tiles", {}, False),
    "--tiles --half": ("tiles", {}, True),
    "--max-side 400": ("file", {"max_side": 400}, False),
    "--max-side 400 --tiles": ("tiles", {"max_side": 400}, False),
    "--raw --min-side 256": ("raw", {"min_side": 256}, False),
}
"""Form, sides in pixels, and whether there are half-size copies, by options of `convert`."""


@dataclass(frozen=True)
class Findings:
    """What was measured, in images per second unless the name says otherwise.

    `loader` maps a number of workers to its speed, and `automatic` is the number that training takes by itself. `sizes`
    maps a training size in pixels to the speed of views relative to `size_px`, the recipe's largest. `forms` maps
    options of `convert` to the speed of views relative to the current form, at the smallest and the largest size that
    the recipe trains at; exactly 1 says that no image would change.
    """

    storage_bytes_per_second: float
    image_bytes: float
    read: float
    decode: float
    crop: float
    view: float
    loader: dict[int, float]
    sizes: dict[int, float]
    forms: dict[str, dict[int, float]]
    processors: int
    automatic: int
    size_px: int

    @property
    def workers(self) -> int:
        """The fewest workers that are nearly as fast as any number."""
        best = max(self.loader.values())
        return min(number for number, rate in self.loader.items() if rate >= _SHORT_OF_WORKERS * best)

    def loader_at(self, size_px: int) -> float:
        """Return the speed of the loader at a training size: the measured one, scaled as views scale."""
        return max(self.loader.values()) * self.sizes[size_px]

    def t4_needs(self) -> dict[int, dict[int, float]]:
        """Return how many images per second T4 GPUs train on at most, by their number and then by training size in
        pixels."""
        return {gpus: {size: gpus * T4.at(size, HIGH) for size in self.sizes} for gpus in _T4_COUNTS}

    @property
    def limit(self) -> str:
        """What limits the loader, in words."""
        best = max(self.loader.values())
        if self.storage_bytes_per_second / self.image_bytes < 1.2 * best:
            return "the storage"
        if self.read < 1.2 * self.view:
            return "reading samples out of the shards"
        if self.workers < max(self.loader):
            return "the processors: more workers do not help"
        what = "RandAugment" if self.view < 0.5 * self.crop else "decoding"
        return f"the processors, and most of their time goes into {what}"


def measure_dataset(dataset: Dataset, config: str, overrides: tuple[str, ...] = ()) -> Findings:
    """Measure how fast the training split of a dataset is loaded on one rank.

    Args:
        dataset: the dataset. If it is not on this machine, its first shards are fetched.
        config: a YAML file or the name of a shipped configuration. The batch is cut so that each worker has several of
            them in an epoch, the subset ignored.
        overrides: `key=value` changes to the configuration.

    Raises:
        UserError: the dataset or the configuration cannot be used.
        WorldError: a stored image is damaged, shards are missing or broken, or the disk or the network fails.
    """
    warnings.simplefilter("ignore")  # torch and Composer warn about what they deprecate
    train = _prefix(dataset.split("train"))
    settings = load_config(config, overrides, ranks=1)
    batch = max(1, min(settings.global_batch_size, _MOST_IN_A_BATCH, train.info.samples // (8 * usable_processors())))
    whole = {"global_batch_size": batch, "data": settings.data.model_copy(update={"subset": None})}
    return _measure(settings.model_copy(update=whole), train)


def _prefix(train: Split) -> Split:
    """Return the split itself if it is read in place; otherwise fetch enough of its first shards for a measurement."""
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


def _measure(recipe: TrainConfig, train: Split) -> Findings:
    """Measure every part for about a second, and the loader with several numbers of workers, all at the recipe's
    largest size."""
    from imagenet_mds_convert.images.policy import HALF_QUALITY, Scaling
    from imagenet_mds_convert.images.prepare import prepare
    from imagenet_mds_convert.sources.base import Unusable
    from imagenet_mds_train.config.workers import workers_of
    from imagenet_mds_train.data import speed
    from imagenet_mds_train.data.stream import StoredImage

    info = train.info
    config = speed.at_size(recipe, recipe.augment.size_px)
    processors = usable_processors()
    print("measuring for about a minute ...", file=sys.stderr, flush=True)
    storage = speed.storage_bytes_per_second(train)  # first, because the other measurements need fetched shards
    files = speed.stored_files(config, train, _FILES)
    parts = speed.measure_parts(config, train, files)
    trained_px = sorted({recipe.augment.size_at(0, recipe.schedule.epochs), recipe.augment.size_px})
    trained = {size_px: speed.at_size(recipe, size_px) for size_px in trained_px}
    forms: dict[str, dict[int, float]] = {}
    if not info.raw:
        for options, (form, sides, half) in _FORMS.items():
            quality = HALF_QUALITY if half else None
            try:
                stored = [prepare(file.image, "none", Scaling(**sides), form, half_quality=quality) for file in files]
            except Unusable as reason:
                where = train.storage.parent.location
                raise UserError(
                    f"{where}: a stored image is damaged ({reason}): run `imagenet-mds verify {where} --deep`"
                ) from None
            made = [StoredImage(one.image, one.half) for one in stored]
            forms[options] = {
                size_px: 1.0 if made == files else speed.view_ratio((sized, files), (sized, made))
                for size_px, sized in trained.items()
            }
    automatic = workers_of("auto", 1)
    tried = sorted({0, 1, 2, automatic, *(processors * share // 4 for share in (2, 3, 4))})
    return Findings(
        storage_bytes_per_second=storage,
        image_bytes=info.size_bytes / info.samples,
        read=parts.read,
        decode=parts.decode,
        crop=parts.crop,
        view=parts.view,
        loader={number: speed.measure_loader(config, train, number) for number in tried},
        sizes={
            size_px: speed.view_ratio((config, files), (speed.at_size(config, size_px), files)) for size_px in _SIZES_PX
        },
        forms=forms,
        processors=processors,
        automatic=automatic,
        size_px=config.augment.size_px,
    )
