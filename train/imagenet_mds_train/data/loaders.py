"""The loaders: training batches in an exact, resumable order; validation over each sample exactly once.

Batches are uint8 images (samples, 3, height, width), channels last in memory, and int64 labels (samples). The model
normalises them on the device, so a quarter of the bytes of float32 crosses to it.

The contract of the training stream: the batch with global number b of epoch e is a pure function of the dataset, the
configuration (`seed`, `data.subset`, `data.order`, `global_batch_size`, `augment`), e and b: which samples are in it
and every byte of their pixels. It does not depend on the ranks, the workers, what they fetch ahead, where the data come
from, or where the run was stopped and resumed. Ranks share a batch, so with another number of ranks its samples come in
another order. A crop of at least twice the training size has its pixels from the half-size copy of its image where the
dataset has copies (`augment.half_copies`), every other one from the image. libjpeg-turbo and torch make the pixels;
other releases, or a CPU without AVX2, may differ by a level. `inspect --config C --epoch E --batch B` prints such a
batch.
"""

import math
import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from imagenet_mds.dataset.shard_cache import ShardCache
from imagenet_mds.process.lifetime import PARENT_VARIABLE, die_with
from imagenet_mds.seeds import sample_seed
from imagenet_mds_train.augment.views import Augmentation, View, fixed_view, validation_view
from imagenet_mds_train.config.data import OrderConfig
from imagenet_mds_train.config.schema import EvaluationConfig, TrainConfig
from imagenet_mds_train.config.workers import workers_of
from imagenet_mds_train.data.device import PADDING_LABEL, DeviceLoader, Finish
from imagenet_mds_train.data.slots import Slots
from imagenet_mds_train.data.stream import ImageStream, StoredImage

Viewed: TypeAlias = tuple[View, int]
"""A sample as it is seen, and its class."""

_IN_ORDER = OrderConfig(shuffle=False, num_canonical_nodes=1)
_VALIDATION_AHEAD_SAMPLES = 16_384
_PREFETCH_BATCHES = 2
"""Validation batches that each worker keeps ready."""


class TrainingImages(ImageStream):
    """The training split in its shuffled order, each image augmented from its own seed."""

    def __init__(self, config: TrainConfig, shard_cache: ShardCache, samples: int) -> None:
        super().__init__(
            shard_cache=shard_cache,
            samples=samples,
            device_batch_size=config.device_batch_size,
            order=config.data.order,
            predownload=config.data.predownload,
        )
        self.seed = config.seed
        self.augmentation = Augmentation(config.augment, config.schedule.epochs)
        self.replace_damaged = config.data.damaged == "black"
        self._counts = _shared_counts(2)

    def counts(self) -> dict[str, int]:
        """Samples since the start that Pillow decoded because the fast decoder refused them, and samples that are
        damaged and were replaced by black."""
        slowly, damaged = self._counts.tolist()
        return {"decoded_slowly": slowly, "damaged": damaged}

    def view(self, sample: int, epoch: int) -> tuple[View, int]:
        """Sample number `sample` as an epoch sees it, and its class.

        Raises:
            Undecodable: the stored bytes do not decode; the sample is named.
        """
        return self.seen(sample, self._viewing(sample, epoch))

    def _viewing(self, sample: int, epoch: int) -> Callable[[StoredImage], View]:
        seed = sample_seed(self.seed, epoch, sample)
        return lambda stored: self.augmentation.view(stored.image, seed, epoch, stored.half)

    def __getitem__(self, sample: int) -> tuple[View, int]:  # type: ignore[override] # the library's is a dictionary
        """Sample number `sample` as the current epoch sees it, and its class. A damaged sample that is replaced is
        black, with the class `PADDING_LABEL`."""
        sample = int(sample)
        if self.replace_damaged:
            seen = self.seen_if_whole(sample, self._viewing(sample, self.epoch))
        else:
            seen = self.view(sample, self.epoch)
        if seen is None:
            self._counts[1] += 1
            return self.augmentation.black(self.epoch), PADDING_LABEL
        if seen[0].slowly:
            self._counts[0] += 1
        return seen


def _shared_counts(count: int) -> Tensor:
    """Counters that the workers, which are started later, share. Two that count at once may lose a count."""
    counts = torch.zeros(count, dtype=torch.int64)
    counts.share_memory_()  # type: ignore[no-untyped-call] # torch's
    return counts


class ValidationImages(IterableDataset[Viewed]):
    """A split in its stored order, each sample exactly once over all ranks, in the same number of batches on each rank.

    Rank r of R has the samples r, r + R, ...; if the samples do not divide evenly, the last ranks get one black image
    with `PADDING_LABEL`. Whole batches are dealt to the workers, so the content of a batch does not depend on their
    number. With `replace_damaged` a sample that does not decode is black in the same way, and counted.
    """

    def __init__(
        self,
        config: EvaluationConfig,
        shard_cache: ShardCache,
        samples: int,
        *,
        rank: int,
        ranks: int,
        replace_damaged: bool = False,
    ) -> None:
        self.stream = ImageStream(
            shard_cache=shard_cache,
            samples=samples,
            device_batch_size=config.device_batch_size,
            order=_IN_ORDER,
            predownload=_VALIDATION_AHEAD_SAMPLES,
        )
        self.samples, self.rank, self.ranks = samples, rank, ranks
        self.device_batch_size = config.device_batch_size
        self.size_px = config.crop_px
        view = validation_view(config)
        self.view: Callable[[StoredImage], View] = lambda stored: view(stored.image)
        self.replace_damaged = replace_damaged
        self._counts = _shared_counts(1)

    def damaged(self) -> int:
        """Damaged samples that were replaced by black since the start, counted again in every validation."""
        return int(self._counts)

    @property
    def rank_samples(self) -> int:
        """Samples of each rank, including padding."""
        return math.ceil(self.samples / self.ranks)

    def __len__(self) -> int:
        """Samples of this rank, including padding."""
        return self.rank_samples

    def __iter__(self) -> Iterator[Viewed]:
        """This worker's batches, one sample after the other."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # (samples of the rank) in batches, which are dealt to the workers in turn
        places = np.arange(self.rank_samples)
        mine = places[places // self.device_batch_size % workers == worker]
        yield from map(self._sample, self.stream.each(mine * self.ranks + self.rank))

    def _sample(self, sample: int) -> Viewed:
        if sample < self.samples:
            if not self.replace_damaged:
                return self.stream.seen(sample, self.view)
            if seen := self.stream.seen_if_whole(sample, self.view):
                return seen
            self._counts += 1
        return fixed_view(np.zeros((self.size_px, self.size_px, 3), np.uint8)), PADDING_LABEL


_HERE = torch.device("cpu")


def training_loader(
    config: TrainConfig,
    shard_cache: ShardCache,
    samples: int,
    *,
    finish: Finish | None = None,
    device: torch.device = _HERE,
) -> DeviceLoader:
    """The training batches of this rank, without a last batch that is not full.

    A batch belongs to its taker until two more of each worker have been taken (see `slots.py`). Copy it to keep it
    longer.

    Args:
        config: the run's.
        shard_cache: the shards of the training split.
        samples: how many samples to use, subset applied.
        finish: what is done to each batch ahead of its use; None leaves batches as `Slots.collate` returns them.
        device: where batches are used.
    """
    workers = workers_of(config.data.workers_per_rank)
    slots = Slots(workers, config.data.prefetch_batches, config.device_batch_size, config.augment.size_px)
    return _loader(
        TrainingImages(config, shard_cache, samples),
        config.device_batch_size,
        workers,
        prefetch_batches=config.data.prefetch_batches,
        drop_last=True,
        collate=slots.collate,
        finish=finish,
        device=device,
    )


def counts_of(train: DeviceLoader, val: DeviceLoader | None) -> dict[str, int]:
    """What the loaders of a rank have counted since the start; see `TrainingImages.counts`."""
    assert isinstance(train.dataset, TrainingImages)
    if val is None:
        return train.dataset.counts()
    assert isinstance(val.dataset, ValidationImages)
    return train.dataset.counts() | {"damaged_val": val.dataset.damaged()}


def validation_loader(
    config: EvaluationConfig,
    shard_cache: ShardCache,
    samples: int,
    *,
    rank: int,
    ranks: int,
    replace_damaged: bool = False,
    finish: Finish | None = None,
    device: torch.device = _HERE,
) -> DeviceLoader:
    """The validation batches of one rank of `ranks`. See `ValidationImages` for `replace_damaged` and `training_loader`
    for `finish` and `device`, and for how long a batch may be kept."""
    workers = workers_of(config.workers_per_rank)
    slots = Slots(workers, _PREFETCH_BATCHES, config.device_batch_size, config.crop_px)
    return _loader(
        ValidationImages(config, shard_cache, samples, rank=rank, ranks=ranks, replace_damaged=replace_damaged),
        config.device_batch_size,
        workers,
        prefetch_batches=_PREFETCH_BATCHES,
        drop_last=False,
        collate=slots.collate,
        finish=finish,
        device=device,
    )


@dataclass(frozen=True)
class _DieWith:
    """Ends a loader worker together with its parent, and in a rank not earlier: SIGTERM to all processes of a run, as
    systemd and batch systems send it, must leave the workers running until the batch is saved."""

    pid: int

    def __call__(self, worker: int) -> None:
        """Set up a worker as it starts."""
        die_with(self.pid)
        if PARENT_VARIABLE in os.environ:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _loader(
    dataset: IterableDataset[Any],
    device_batch_size: int,
    workers: int,
    *,
    prefetch_batches: int,
    drop_last: bool,
    collate: Callable[[list[Any]], Any],
    finish: Finish | None,
    device: torch.device,
) -> DeviceLoader:
    return DeviceLoader(
        finish=finish,
        device=device,
        dataset=dataset,
        batch_size=device_batch_size,
        drop_last=drop_last,
        collate_fn=collate,
        num_workers=workers,
        prefetch_factor=prefetch_batches if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_DieWith(os.getpid()),
        # Its own generator, because a loader draws from the global one at each epoch, which would change training.
        generator=torch.Generator().manual_seed(0),
    )
