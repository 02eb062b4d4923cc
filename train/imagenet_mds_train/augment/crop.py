"""Which part of an image training sees: torchvision's RandomResizedCrop, drawn from the sample's own seed.

These are pure functions. A crop much larger than the training size can be decoded at a half, a quarter or an eighth of
its size, or from the half-size copy of its image, which is cheaper. Its edges must then lie on pixels of the smaller
image, so they are moved to the nearest such place, by at most 4 pixels (for a crop of more than 8 times the training
size), and not at all where nothing is scaled. The moved crop is the sample's crop, however it is then decoded.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from imagenet_mds.seeds import SampleRandom

_ATTEMPTS = 10
DCT_DENOMINATORS = (8, 4, 2)
"""Scales at which libjpeg-turbo is faster than at full size; at 8/5 or 8/7 it is slower (measured)."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of an image, in pixels of the whole. Decoding at 1/denominator of the size is enough; `denominator`
    divides the position and the size of the crop."""

    left: int
    top: int
    width: int
    height: int
    denominator: int = 1

    @property
    def halved(self) -> "Crop":
        """The same part of a copy of half the size, of a crop whose `denominator` is even."""
        return Crop(self.left // 2, self.top // 2, self.width // 2, self.height // 2, self.denominator // 2)


def draw_crop(
    random: SampleRandom, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """Draw RandomResizedCrop's parameters as torchvision 0.22 does (`RandomResizedCrop.make_params`).

    Args:
        random: where the draws come from.
        width: of the image, in pixels.
        height: of the image, in pixels.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width by height, drawn with a uniform logarithm.
    """
    area = width * height
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_ATTEMPTS):
        target = area * random.uniform(*scale)
        aspect = math.exp(random.uniform(log_low, log_high))
        w, h = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < w <= width and 0 < h <= height:
            top = random.integer(height - h + 1)
            left = random.integer(width - w + 1)
            return Crop(left, top, w, h)
    # As much of the image as the ratio allows, from the centre.
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return Crop((width - w) // 2, (height - h) // 2, w, h)


def on_grid(crop: Crop, width: int, height: int, size_px: int, denominators: Sequence[int]) -> Crop:
    """Move a crop's edges to pixels of the image at a fraction of its size, if it has at least `size_px` there.

    Args:
        crop: as drawn.
        width: of the image, in pixels.
        height: of the image, in pixels.
        size_px: what the crop is resized to, in pixels on each side.
        denominators: of the fractions that there are, the largest first.
    """
    for denominator in denominators:
        if min(crop.width, crop.height) >= size_px * denominator:
            left, w = _snap(crop.left, crop.width, width, denominator)
            top, h = _snap(crop.top, crop.height, height, denominator)
            return Crop(left, top, w, h, denominator)
    return crop


def _snap(start: int, length: int, end: int, step: int) -> tuple[int, int]:
    """The nearest start and length in whole steps that lie within [0, end)."""
    length = min((length + step // 2) // step, end // step) * step
    return min((start + step // 2) // step, (end - length) // step) * step, length
