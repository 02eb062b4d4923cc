"""What happens to a whole batch on its device: ColOut, MixUp or CutMix, and soft labels.

Everything is drawn from the seed of the global batch, so that it is the same on any number of ranks and after an
interruption. Composer draws from a global generator, which is another one on each rank. It also applies MixUp and
CutMix on top of each other if both are on, with labels that are wrong by up to 0.29, and makes soft labels in the step,
where the processor waits for the GPU eight times.

An image is mixed with its neighbour in the batch. The order of the samples is random in each epoch, so a permutation of
the batch would add nothing but the images that meet themselves.
"""

import math
import random
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from imagenet_mds.seeds import batch_seed
from imagenet_mds_train.config.recipe import AlgorithmsConfig, ColOutConfig, CutMixConfig, MixUpConfig


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @property
    def area(self) -> int:
        """Its pixels."""
        return (self.bottom - self.top) * (self.right - self.left)


def soft_labels(labels: Tensor, classes: int, smoothing: float = 0.0) -> Tensor:
    """Class probabilities of labels.

    Smoothing is linear, so smoothed labels that are mixed are mixed labels that are smoothed.

    Args:
        labels: (samples), int64. A negative label has no weight: its row is zero.
        classes: number of classes.
        smoothing: the share that is spread evenly over all classes.

    Returns:
        (samples, classes), float32.
    """
    probabilities = torch.full((len(labels), classes), smoothing / classes, device=labels.device)
    probabilities.scatter_(1, labels.clamp(min=0)[:, None], 1 - smoothing + smoothing / classes)
    return probabilities.mul_((labels >= 0)[:, None])


def mix_up(images: Tensor, targets: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Mix each image with its neighbour.

    Args:
        images: (samples, 3, height, width), uint8.
        targets: (samples, classes).
        share: of the image itself, 0 to 1.

    Returns:
        Images, float32, and targets.
    """
    mixed = images.float().lerp_(images.roll(1, 0).float(), 1 - share)
    return mixed, targets.lerp(targets.roll(1, 0), 1 - share)


def cut_mix(images: Tensor, targets: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Paste a rectangle of its neighbour into each image.

    Args:
        images: (samples, 3, height, width), uint8.
        targets: (samples, classes), which change by the share of the pixels.
        box: the rectangle.
    """
    pasted = images.clone(memory_format=torch.preserve_format)
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    pasted[:, :, rows, columns] = images[:, :, rows, columns].roll(1, 0)
    share = box.area / (images.shape[2] * images.shape[3])
    return pasted, targets.lerp(targets.roll(1, 0), share)


def draw_box(draw: random.Random, alpha: float, height: int, width: int) -> Box:
    """CutMix's rectangle (Yun et al. 2019, section 3.2): its area is drawn, then its centre; it is cut at the edges."""
    side = math.sqrt(1 - draw.betavariate(alpha, alpha))
    half_height, half_width = int(height * side) // 2, int(width * side) // 2
    row, column = draw.randrange(height), draw.randrange(width)
    return Box(
        max(0, row - half_height), max(0, column - half_width),
        min(height, row + half_height), min(width, column + half_width),
    )  # fmt: skip


def col_out(images: Tensor, draw: random.Random, config: ColOutConfig) -> Tensor:
    """Leave random rows and columns out of all images of a batch."""
    for axis, share in ((2, config.rows), (3, config.columns)):
        size = images.shape[axis]
        kept = torch.tensor(sorted(draw.sample(range(size), round(size * (1 - share)))))
        images = images.index_select(axis, kept.to(images.device, non_blocking=True))
    return images.contiguous(memory_format=torch.channels_last)


@dataclass(frozen=True)
class Mixing:
    """What a recipe does to whole batches.

    config: the algorithms.
    classes: number of classes.
    seed: of the run.
    """

    config: AlgorithmsConfig
    classes: int
    seed: int

    def __call__(self, images: Tensor, labels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Mix a rank's part of a batch.

        Args:
            images: (samples, 3, height, width), uint8.
            labels: (samples), int64, on the same device.
            batch: number of the global batch, counted from 0.

        Returns:
            Images, uint8, or float32 after MixUp, and class probabilities (samples, classes).
        """
        config = self.config
        targets = soft_labels(labels, self.classes, config.label_smoothing.smoothing if config.label_smoothing else 0.0)
        if config.colout:
            images = col_out(images, random.Random(batch_seed(self.seed, batch) ^ 1), config.colout)
        mixed = self._draw(batch, *images.shape[2:])
        if isinstance(mixed, Box):
            return cut_mix(images, targets, mixed)
        return (images, targets) if mixed is None else mix_up(images, targets, mixed)

    def drawn(self, batch: int, height: int, width: int) -> tuple[str, float] | None:
        """What is drawn for a batch, by its number and the size of its images after ColOut: `mixup` or `cutmix`, and
        the share of an image's own pixels; None if it is not mixed."""
        mixed = self._draw(batch, height, width)
        if isinstance(mixed, Box):
            return "cutmix", 1 - mixed.area / (height * width)
        return None if mixed is None else ("mixup", mixed)

    def _draw(self, batch: int, height: int, width: int) -> Box | float | None:
        """CutMix's rectangle, or the share of MixUp, or None."""
        draw = random.Random(batch_seed(self.seed, batch))
        chosen = _choose(draw, self.config)
        if isinstance(chosen, CutMixConfig):
            return draw_box(draw, chosen.alpha, height, width)
        return draw.betavariate(chosen.alpha, chosen.alpha) if chosen else None


def _choose(draw: random.Random, config: AlgorithmsConfig) -> MixUpConfig | CutMixConfig | None:
    """MixUp or CutMix: by a fair coin if both are on."""
    if config.mixup and config.cutmix:
        return config.mixup if draw.random() < 0.5 else config.cutmix
    return config.mixup or config.cutmix
