"""What a run takes on its machine, before it starts: hours, dollars, memory. Imports no torch.

Every figure says where it is from. `reckoned` rates of a T4 are from NVIDIA's published ratio of training to inference,
the memory bandwidth of three other GPUs, and the 24 TFLOPS that a T4 sustains; no T4 was measured.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from imagenet_mds.words import duration
from imagenet_mds_train.config.schema import TrainConfig

SPOT_SHARE = (0.3, 0.45)
"""What a spot instance costs, as a share of the price on demand, by the prices of 2025; it changes by the hour."""


LOW, MIDDLE, HIGH = range(3)
"""Which of a rate's three figures."""


@dataclass(frozen=True)
class GPURates:
    """Images/s of one GPU that trains a ResNet-50 in fp16 with this program's recipes, by size in pixels: the low, the
    middle and the high figure. `origin` says whether they were measured."""

    name: str
    origin: str
    images_per_second: dict[int, tuple[float, float, float]]
    memory_gib: float

    def at(self, size_px: int, figure: int) -> float:
        """The rate at a size, between the table's sizes by the number of pixels.

        Args:
            size_px: side of the images.
            figure: `LOW`, `MIDDLE` or `HIGH`.
        """
        sizes = sorted(self.images_per_second)
        right = min(range(1, len(sizes)), key=lambda place: (sizes[place] < size_px, place))
        left = max(0, right - 1)
        one, two = sizes[left], sizes[right]
        rates = [math.log(self.images_per_second[size][figure]) for size in (one, two)]
        slope = (rates[1] - rates[0]) / (math.log(two) - math.log(one))
        return math.exp(rates[0] + slope * (math.log(size_px) - math.log(one)))

    def scaled(self, name: str, factor: float, memory_gib: float) -> "GPURates":
        """Another GPU that is faster by a factor at each size."""
        rates = {
            size: (low * factor, middle * factor, high * factor)
            for size, (low, middle, high) in self.images_per_second.items()
        }
        return GPURates(name, "reckoned", rates, memory_gib)


T4 = GPURates(
    "T4",
    "reckoned",
    {
        88: (1497, 1655, 1767),
        128: (836, 943, 1021),
        160: (569, 646, 704),
        176: (479, 546, 596),
        192: (409, 467, 510),
        224: (307, 351, 385),
    },
    memory_gib=14.6,
)

A10G, L4 = T4.scaled("A10G", 600 / 320, 22.0), T4.scaled("L4", 300 / 320, 22.0)
GPUS = {rates.name: rates for rates in (T4, A10G, L4)}
"""By name. Training a ResNet in 16 bits waits for memory, so the others are reckoned from theirs (GB/s)."""

_VALIDATION_SPEED = 3.0
"""A validation has the forward pass of a step alone, about a third of its work."""

_SAM_WORK = 1.03
"""What a second pass adds to a step with SAM, in steps; measured on an H200."""

_ACTIVATION_MIB = {None: 42.4, "convolutions": 46.4, "all": 52.5}
"""Saved for the backward pass of an image at 224 px in 16 bits, by BlurPool; measured on an H200, as are the others."""

_PARAMETERS = 25_557_032
_OTHER_GIB = 2.5
"""The CUDA context, workspaces, and what the allocator holds in reserve."""


@dataclass(frozen=True)
class Estimate:
    """Hours of a run: the low, the middle and the high figure."""

    hours: tuple[float, float, float]

    def dollars(self, dollars_per_hour: float) -> tuple[float, float, float]:
        """What the hours cost."""
        low, middle, high = (hours * dollars_per_hour for hours in self.hours)
        return low, middle, high


def estimate_hours(config: TrainConfig, batches_per_epoch: int, val_samples: int, rates: GPURates = T4) -> Estimate:
    """The hours of a run on as many GPUs as it has ranks, with batches always ready.

    Args:
        config: the run's.
        batches_per_epoch: optimizer steps of an epoch.
        val_samples: images of a validation.
        rates: of the GPU.
    """
    low, middle, high = (
        _hours(config, batches_per_epoch, val_samples, partial(rates.at, figure=figure))
        for figure in (HIGH, MIDDLE, LOW)
    )
    return Estimate((low, middle, high))


def hours_at(config: TrainConfig, batches_per_epoch: int, val_samples: int, images_per_second: float) -> float:
    """The hours of a run, from the rate that all ranks together were measured to have at the full training size.

    The rates at smaller sizes have the ratio that those of a T4 have.
    """
    full = config.augment.size_px
    sam_factor = _work_factor(config)
    return _hours(
        config,
        batches_per_epoch,
        val_samples,
        lambda size: images_per_second * sam_factor / config.ranks * T4.at(size, MIDDLE) / T4.at(full, MIDDLE),
    )


def _work_factor(config: TrainConfig) -> float:
    """Steps' worth of work of a mean step."""
    sam = config.algorithms.sam
    return 1.0 + (_SAM_WORK / sam.every_batches if sam else 0.0)


def _hours(config: TrainConfig, batches_per_epoch: int, val_samples: int, rate_at: Callable[[int], float]) -> float:
    images, epochs = batches_per_epoch * config.global_batch_size, config.schedule.epochs
    training = sum(images / rate_at(config.size_at(epoch)) for epoch in range(epochs)) * _work_factor(config)
    validations = sum(config.evaluation.is_due(finished, epochs) for finished in range(1, epochs + 1))
    validating = validations * val_samples / (_VALIDATION_SPEED * rate_at(config.evaluation.crop_px))
    return (training + validating) / config.ranks / 3600


def estimate_memory_gib(config: TrainConfig) -> float:
    """GPU memory of a rank that trains a ResNet-50 in 16 bits, in GiB."""
    activations = (
        config.device_microbatch_size
        * _ACTIVATION_MIB[config.algorithms.blurpool]
        * (config.augment.size_px / 224) ** 2
        / 1024
    )
    if config.system.activation_checkpointing:
        activations /= 2
    # Weights, gradients and momentum in 32 bits; the average and SAM's way back have a copy each.
    averages = bool(config.algorithms.ema or config.algorithms.swa)
    copies = 3 + averages + (config.algorithms.sam is not None)
    return activations + copies * _PARAMETERS * 4 / (1 << 30) + _OTHER_GIB


def in_words(config: TrainConfig, batches_per_epoch: int, val_samples: int) -> list[tuple[str, str]]:
    """What a run takes, as (name, value) rows; none where nothing is known of its network or machine."""
    if config.model.depth != 50 or config.system.device != "gpu":
        return []
    found = estimate_hours(config, batches_per_epoch, val_samples)
    low, middle, high = found.hours
    gpus = f"{config.ranks} {T4.name}"
    needed = estimate_memory_gib(config)
    fits = "" if needed <= T4.memory_gib else ": too much, pass a smaller system.device_microbatch_size"
    rows = [
        ("time", f"{duration(middle)} ({duration(low)} to {duration(high)}) on {gpus}, {T4.origin}"),
        ("memory", f"about {needed:.1f} of {T4.memory_gib} GiB a GPU, {T4.origin}{fits}"),
    ]
    if price := config.logging.dollars_per_hour:
        dollars = found.dollars(price)[1]
        spot = " to ".join(f"{dollars * share:,.2f}" for share in SPOT_SHARE)
        rows.insert(1, ("dollars", f"{dollars:,.2f} on demand at {price:g} an hour, about {spot} on spot instances"))
    return rows


def remaining_work(config: TrainConfig, batches_per_epoch: int, batch: int) -> float:
    """The work of a run after a number of batches, in images of the present size: an image of the other epochs counts
    by its pixels."""
    epochs = config.schedule.epochs
    epoch = min(batch // batches_per_epoch, epochs - 1)
    now = config.size_at(epoch) ** 2
    left = (epoch + 1) * batches_per_epoch - batch
    later = sum(batches_per_epoch * config.size_at(one) ** 2 for one in range(epoch + 1, epochs))
    return (left + later / now) * config.global_batch_size
