"""Measures how fast a dataset becomes batches on this machine, part by part, for `doctor --data`.

Rates are in images per second of wall time. Parts are measured in one process, the loader as training runs it.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import simplejpeg
import torch

from imagenet_mds.dataset.access import Split
from imagenet_mds.seeds import sample_seed
from imagenet_mds_train.augment.decode import decode_slowly, jpeg_size
from imagenet_mds_train.augment.views import Augmentation
from imagenet_mds_train.config.schema import TrainConfig
from imagenet_mds_train.data.device import Batch
from imagenet_mds_train.data.loaders import TrainingImages, training_loader
from imagenet_mds_train.data.stream import FETCHES_ON_A_HOST, StoredImage, own_resources

_SECONDS = 1.0
"""How long each part is measured; the loader longer, by the time its workers take to start."""

_LOADER_SECONDS = 2.5
_PAIRS = 5
_STORAGE_BYTES = 256 << 20


@dataclass(frozen=True)
class Parts:
    """Images per second of one process: reading their bytes from the shards, decoding them whole, resized crops, and
    training's views, with RandAugment where it is configured."""

    read: float
    decode: float
    crop: float
    view: float


def rate(work: Callable[[int], object], seconds: float = _SECONDS) -> float:
    """Calls of `work(0)`, `work(1)`, ... per second, measured for about `seconds`. The first call is not counted."""
    work(0)
    begun, number = time.perf_counter(), 0
    while (spent := time.perf_counter() - begun) < seconds:
        number += 1
        work(number)
    return number / spent


def storage_bytes_per_second(train: Split) -> float:
    """How fast shards arrive from storage. Shards that are not on this machine yet are fetched, as many at once as in
    training; if all are here, they are read from the disk, past the page cache as far as the system allows."""
    absent = [shard for shard in train.info.shards if not train.shard_cache.path(shard.basename).exists()]
    if absent:
        begun = time.perf_counter()
        with ThreadPoolExecutor(FETCHES_ON_A_HOST) as pool:
            list(pool.map(train.shard_cache.fetch, absent))
        return sum(shard.size_bytes for shard in absent) / (time.perf_counter() - begun)
    read_bytes, seconds = 0, 0.0
    for shard in train.info.shards:
        descriptor = os.open(train.shard_cache.path(shard.basename), os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            begun = time.perf_counter()
            while chunk := os.read(descriptor, 1 << 22):
                read_bytes += len(chunk)
            seconds += time.perf_counter() - begun
        finally:
            os.close(descriptor)
        if read_bytes >= _STORAGE_BYTES:
            break
    return read_bytes / max(seconds, 1e-9)


def spread(samples: int, most: int) -> list[int]:
    """Up to `most` sample numbers, spread evenly over the split."""
    return sorted({samples * place // most for place in range(most)})


def view_rate(config: TrainConfig, files: Sequence[StoredImage], seconds: float = _SECONDS) -> float:
    """Views per second that one process makes of stored samples, with the seeds of the first epoch."""
    augmentation = Augmentation(config.augment, config.schedule.epochs)

    def view(number: int) -> None:
        stored = files[number % len(files)]
        augmentation.view(stored.image, sample_seed(config.seed, 0, number), 0, stored.half)

    return rate(view, seconds)


def at_size(config: TrainConfig, size_px: int) -> TrainConfig:
    """The configuration with images of one size in all epochs."""
    augment = config.augment.model_copy(update={"size_px": size_px, "progressive": None})
    return config.model_copy(update={"augment": augment})


def view_ratio(
    first: tuple[TrainConfig, Sequence[StoredImage]], second: tuple[TrainConfig, Sequence[StoredImage]]
) -> float:
    """How many times as fast as the first the second makes views of stored samples. It is a median of pairs, because a
    busy machine slows now one side and now the other."""
    pairs = [[view_rate(*side, _SECONDS / _PAIRS) for side in (first, second)] for _ in range(_PAIRS)]
    return statistics.median(rate_of_second / rate_of_first for rate_of_first, rate_of_second in pairs)


def stored_files(config: TrainConfig, train: Split, most: int) -> list[StoredImage]:
    """The images of up to `most` samples, spread evenly over the training split.

    Raises:
        Undecodable: one of them does not decode.
    """
    with own_resources():
        images = TrainingImages(config, train.shard_cache, train.info.samples)
        samples = spread(train.info.samples, most)
        for sample in samples:
            images.view(sample, 0)
        return [images.read(sample)[0] for sample in samples]


def measure_parts(config: TrainConfig, train: Split, files: Sequence[StoredImage]) -> Parts:
    """Measure the parts of loading a sample, in this process."""

    def decode(number: int) -> None:
        data = files[number % len(files)].image
        if jpeg_size(data) is None:
            decode_slowly(data)
        else:
            simplejpeg.decode_jpeg(data, "RGB", strict=False)  # strict mode complains about odd headers

    torch.set_num_threads(1)  # as in a worker
    with own_resources():
        images = TrainingImages(config, train.shard_cache, train.info.samples)
        read = rate(lambda number: images.read(number * 7919 % train.info.samples))
    plain = config.model_copy(update={"augment": config.augment.model_copy(update={"randaugment": None})})
    return Parts(read, rate(decode), view_rate(plain, files), view_rate(config, files))


def measure_loader(config: TrainConfig, train: Split, workers: int) -> float:
    """Images per second of the loader of one rank with `workers` workers, once their prefetched batches are used up."""
    tried = config.model_copy(update={"data": config.data.model_copy(update={"workers_per_rank": workers})})
    samples = config.data.subset_samples() or train.info.samples
    with own_resources():
        batches = _for_ever(training_loader(tried, train.shard_cache, samples))
        for _ in range(1 + config.data.prefetch_batches * workers):
            next(batches)
        return rate(lambda _: next(batches), _LOADER_SECONDS) * config.device_batch_size


def _for_ever(loader: Iterable[Batch]) -> Iterator[Batch]:
    while True:
        yield from loader
