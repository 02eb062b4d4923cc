"""The loaders: training batches in an exact, resumable order; validation on exactly the samples there are.

Batches are uint8 images (samples, 3, height, width) and int64 labels (samples); the model normalises them on the
device, so a quarter of the bytes crosses to it.
"""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from imagenet_mds.config import EvaluationConfig, OrderConfig, TrainConfig
from imagenet_mds.seeds import sample_seed
from imagenet_mds_train.augment import seeded, training_transform, validation_transform
from imagenet_mds_train.orphans import die_with
from imagenet_mds_train.stream import ImageStream

Pair: TypeAlias = tuple[Tensor, int]
Batch: TypeAlias = tuple[Tensor, Tensor]

PADDING_LABEL = -1
"""The label of the black images that make the ranks' validation batches equal in number; they are never counted."""

_IN_ORDER = OrderConfig(shuffle=False, num_canonical_nodes=1)


class TrainingImages(ImageStream):
    """The training split in its shuffled order, each image augmented from its own seed."""

    def __init__(self, config: TrainConfig, local: Path, samples: int) -> None:
        super().__init__(
            local=local,
            samples=samples,
            device_batch_size=config.device_batch_size,
            order=config.data.order,
            predownload=config.data.predownload,
        )
        self.seed = config.seed
        self.transform = training_transform(config.augment)

    def __getitem__(self, sample: int) -> Pair:  # type: ignore[override] # the library's returns a dictionary
        """Sample number `sample` as the current epoch sees it: (3, size, size) uint8 and its class."""
        picture, label = self.picture(sample)
        with seeded(sample_seed(self.seed, self.epoch, int(sample))):
            return self.transform(picture), label


class ValidationImages(IterableDataset[Pair]):
    """A split in its stored order, each sample exactly once over all ranks, in as many batches on each rank.

    Rank r of R has samples r, r + R, ...; where they do not come out even, the last ranks get one black image with
    `PADDING_LABEL`. Whole batches are dealt to the workers, so what is in a batch does not depend on their number.
    """

    def __init__(self, config: EvaluationConfig, local: Path, samples: int, *, rank: int, ranks: int) -> None:
        self.stream = ImageStream(
            local=local, samples=samples, device_batch_size=config.device_batch_size, order=_IN_ORDER, predownload=1
        )
        self.samples, self.rank, self.ranks = samples, rank, ranks
        self.device_batch_size = config.device_batch_size
        self.size_px = config.crop_px
        self.transform = validation_transform(config)

    @property
    def rank_samples(self) -> int:
        """Samples of each rank, padding included."""
        return math.ceil(self.samples / self.ranks)

    def __len__(self) -> int:
        """Samples of this rank, padding included."""
        return self.rank_samples

    def __iter__(self) -> Iterator[Pair]:
        """This worker's batches, one sample after the other."""
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        for start in range(worker * self.device_batch_size, self.rank_samples, workers * self.device_batch_size):
            for place in range(start, min(start + self.device_batch_size, self.rank_samples)):
                yield self._sample(place * self.ranks + self.rank)

    def _sample(self, sample: int) -> Pair:
        if sample >= self.samples:
            return torch.zeros(3, self.size_px, self.size_px, dtype=torch.uint8), PADDING_LABEL
        picture, label = self.stream.picture(sample)
        return self.transform(picture), label


def training_loader(config: TrainConfig, local: Path, samples: int) -> "DataLoader[Batch]":
    """The training batches of this rank; a last batch that is not full is left out."""
    return _loader(
        TrainingImages(config, local, samples),
        config.device_batch_size,
        config.data.workers_per_rank,
        prefetch_batches=config.data.prefetch_batches,
        drop_last=True,
    )


def validation_loader(
    config: EvaluationConfig, local: Path, samples: int, *, rank: int, ranks: int
) -> "DataLoader[Batch]":
    """The validation batches of one rank of `ranks`."""
    dataset = ValidationImages(config, local, samples, rank=rank, ranks=ranks)
    return _loader(dataset, config.device_batch_size, config.workers_per_rank, prefetch_batches=2, drop_last=False)


@dataclass(frozen=True)
class _DieWith:
    """Ends a loader worker with its rank."""

    rank_pid: int

    def __call__(self, worker: int) -> None:
        """Called in each worker as it starts."""
        die_with(self.rank_pid)


def _loader(
    dataset: IterableDataset[Pair], device_batch_size: int, workers: int, *, prefetch_batches: int, drop_last: bool
) -> "DataLoader[Batch]":
    return DataLoader[Any](
        dataset,
        batch_size=device_batch_size,
        drop_last=drop_last,
        num_workers=workers,
        prefetch_factor=prefetch_batches if workers else None,
        persistent_workers=workers > 0,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=_DieWith(os.getpid()),
        # Of its own, for a loader draws from the global one at each epoch, and training must not notice.
        generator=torch.Generator().manual_seed(0),
    )
