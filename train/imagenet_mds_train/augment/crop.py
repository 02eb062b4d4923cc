"""Which part of a picture training sees: torchvision's RandomResizedCrop, drawn from the sample's own seed.

Pure functions. A crop that is much larger than what it becomes can be decoded at a half, a quarter or an eighth of its
size for less than the whole. For that its edges must lie on pixels of the smaller picture, so they are moved to the
nearest such place, by 4 pixels at most (of a crop of more than 8 times the training size), and by none where nothing
is scaled. The crop that was moved is the sample's crop, whichever way it is then decoded.
"""

import math
from dataclasses import dataclass

from imagenet_mds.seeds import SampleRandom

_ATTEMPTS = 10
DCT_DENOMINATORS = (8, 4, 2)
"""What libjpeg-turbo scales down by faster than it decodes the whole; by 8/5 or 8/7 it takes longer (measured)."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A part of a picture, in pixels of the whole one; `denominator` says that 1/denominator of its size is enough, and
    divides its place and size."""

    left: int
    top: int
    width: int
    height: int
    denominator: int = 1


def draw_crop(
    random: SampleRandom, width: int, height: int, scale: tuple[float, float], ratio: tuple[float, float]
) -> Crop:
    """RandomResizedCrop's parameters, as torchvision 0.22 draws them (`RandomResizedCrop.make_params`).

    Args:
        random: where the draws come from.
        width: of the picture, pixels.
        height: of the picture, pixels.
        scale: least and most share of the picture's area.
        ratio: least and most width by height; its logarithm is uniform.
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
    # The whole, as far as the ratio allows, from the middle.
    w, h = width, height
    if width / height < ratio[0]:
        h = round(w / ratio[0])
    elif width / height > ratio[1]:
        w = round(h * ratio[1])
    return Crop((width - w) // 2, (height - h) // 2, w, h)


def on_grid(crop: Crop, width: int, height: int, size_px: int, oversampling: float) -> Crop:
    """The crop with its edges where a picture decoded at a fraction of its size has pixels.

    Args:
        crop: as drawn.
        width: of the picture, pixels.
        height: of the picture, pixels.
        size_px: what the crop will become, pixels on each side.
        oversampling: how many times `size_px` the decoded crop has at least on each side.
    """
    for denominator in DCT_DENOMINATORS:
        least = oversampling * size_px * denominator
        if crop.width >= least and crop.height >= least:
            left, w = _snap(crop.left, crop.width, width, denominator)
            top, h = _snap(crop.top, crop.height, height, denominator)
            return Crop(left, top, w, h, denominator)
    return crop


def _snap(start: int, length: int, end: int, step: int) -> tuple[int, int]:
    """Start and length in whole steps, the nearest ones that lie within [0, end)."""
    length = min((length + step // 2) // step, end // step) * step
    return min((start + step // 2) // step, (end - length) // step) * step, length
