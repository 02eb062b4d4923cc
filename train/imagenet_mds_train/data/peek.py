"""Shows what training sees in one batch, without training: for people, programs and the tests of the sample order."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xxhash

from imagenet_mds.dataset.access import Split
from imagenet_mds.dataset.manifest import read_keys
from imagenet_mds.errors import UserError
from imagenet_mds_train.augment.crop import Crop
from imagenet_mds_train.augment.decode import Pixels
from imagenet_mds_train.augment.jitter import jitter, jitter_rows
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.config.subset import refuse_subset
from imagenet_mds_train.data.loaders import TrainingImages
from imagenet_mds_train.data.stream import own_resources


@dataclass(frozen=True)
class Seen:
    """One sample of a batch: which one, which part of it is seen, and the pixels, (size, size, 3)."""

    rank: int
    worker: int
    sample: int
    key: str
    label: int
    crop: Crop
    flip: bool
    pixels: Pixels

    def as_json(self) -> dict[str, Any]:
        """Plain values for programs, with a digest instead of the pixels."""
        crop = [self.crop.left, self.crop.top, self.crop.width, self.crop.height]
        return {
            "rank": self.rank,
            "worker": self.worker,
            "sample": self.sample,
            "key": self.key,
            "label": self.label,
            "crop": crop,
            "scaled_by": self.crop.denominator,
            "flip": self.flip,
            "size": self.pixels.shape[0],
            "pixels_xxh64": xxhash.xxh64_hexdigest(np.ascontiguousarray(self.pixels).tobytes()),
        }


def training_batch(config: TrainConfig, train: Split, *, epoch: int, batch: int, workers: int) -> Iterator[Seen]:
    """The samples of a training batch, rank by rank, in order.

    Args:
        config: the run's; its ranks share the batch.
        train: the training split.
        epoch: counted from 0.
        batch: counted from 0 within the epoch.
        workers: of each rank; only the worker's number in the result depends on it.

    Raises:
        UserError: the epoch has no such batch.
    """
    refuse_subset(config, train.storage.parent.location, train.info)
    samples = min(config.data.subset_samples() or train.info.samples, train.info.samples)
    batches = samples // config.global_batch_size
    if not batches:
        raise UserError(
            f"{samples:,} images do not fill one batch of {config.global_batch_size}: pass another --config"
        )
    if epoch >= config.schedule.epochs:
        raise UserError(f"--epoch {epoch:,}: the configuration has {config.schedule.epochs:,} epochs, counted from 0")
    if batch >= batches:
        raise UserError(f"--batch {batch:,}: an epoch has {batches:,} batches, counted from 0")
    train.check_available(train.info.prefix(samples))
    with own_resources():
        # This one process stands for all ranks, so a global batch is its own.
        images = TrainingImages(config.model_copy(update={"ranks": 1}), train.shard_cache, samples)
        keys = read_keys(train.storage, train.info.samples) if train.info.classes else None
        # (ranks, device batch)
        for rank, numbers in enumerate(images.arrangement(epoch, config.ranks, workers)[:, batch]):
            for sample in map(int, numbers):
                view, label = images.view(sample, epoch)
                pixels = torch.from_numpy(view.pixels).permute(2, 0, 1)
                if view.jitter:
                    pixels = jitter(pixels[None], jitter_rows([view.jitter]))[0]
                yield Seen(
                    rank=rank,
                    worker=batch % max(1, workers),
                    sample=sample,
                    key=keys[sample] if keys else "",
                    label=label,
                    crop=view.crop,
                    flip=view.flip,
                    pixels=pixels.permute(1, 2, 0).numpy(),
                )
