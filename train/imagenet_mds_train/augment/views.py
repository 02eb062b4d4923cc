"""What happens to an image before the network sees it: random in training, fixed in validation.

Each part of the training augmentation runs where it is cheapest. A loader worker crops, resizes and flips (`crop.py`,
`decode.py`) and runs torchvision's RandAugment on Pillow images. ColorJitter's parameters are drawn there too, and
applied on the device, batch by batch (`jitter.py`). The order is torchvision's: crop, flip, RandAugment, ColorJitter.
All randomness comes from the sample's own seed, so nothing depends on which process does the work.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from imagenet_mds.dataset.raw_pixels import is_raw
from imagenet_mds.seeds import SampleRandom
from imagenet_mds_train.augment.crop import Crop, draw_crop, on_grid
from imagenet_mds_train.augment.decode import (
    Pixels,
    centre,
    decode_crop,
    decode_picture,
    decode_slowly,
    fractions,
    jpeg_size,
    part_of,
    resize,
)
from imagenet_mds_train.augment.jitter import IDENTITY, JitterRow, draw_jitter
from imagenet_mds_train.config.augment import AugmentConfig
from imagenet_mds_train.config.schema import EvaluationConfig


@dataclass(frozen=True, slots=True)
class View:
    """A sample as one epoch sees it.

    `pixels` are (size, size, 3), RGB, before ColorJitter, whose parameters are `jitter`. `slowly` says that Pillow
    decoded it.
    """

    pixels: Pixels
    crop: Crop
    flip: bool
    jitter: JitterRow | None
    slowly: bool


class Augmentation:
    """The training augmentation: a pure function of (file, seed, epoch).

    Args:
        config: what is done.
        epochs: of the run, to which a size that grows refers.
    """

    def __init__(self, config: AugmentConfig, epochs: int = 1) -> None:
        self.config = config
        self.epochs = epochs
        self._randaugment = (
            v2.RandAugment(num_ops=config.randaugment.depth, magnitude=config.randaugment.severity)
            if config.randaugment
            else None
        )

    def black(self, epoch: int) -> View:
        """The black view that replaces a file that does not decode."""
        size_px = self.config.size_at(epoch, self.epochs)
        crop = Crop(0, 0, size_px, size_px)
        jitter = IDENTITY if self.config.color_jitter else None
        return View(np.zeros((size_px, size_px, 3), np.uint8), crop, False, jitter, False)

    def view(self, data: bytes, seed: int, epoch: int, half: bytes = b"") -> View:
        """What training sees of a file.

        Args:
            data: the stored file.
            seed: of the sample in this epoch; see `seeds.sample_seed`.
            epoch: counted from 0; decides the size.
            half: the stored half-size copy of the file, empty if it has none.

        Raises:
            Exception: any kind that Pillow's plugins raise, where the file does not decode.
        """
        config, random, size_px = self.config, SampleRandom(seed), self.config.size_at(epoch, self.epochs)
        half = half if config.half_copies else b""
        size, whole = jpeg_size(data), None
        if size is None:
            whole = decode_slowly(data)
            size = whole.shape[1], whole.shape[0]
        crop = draw_crop(random, *size, config.scale, config.ratio)
        if whole is None:
            crop = on_grid(crop, *size, size_px, fractions(config.resize, half))
        flip = random.uniform() < config.flip_probability
        jitter = draw_jitter(random, config.color_jitter) if config.color_jitter else None
        part = decode_crop(data, half, crop, size, config.resize) if whole is None else None
        slowly = part is None and not is_raw(data)
        if part is None:
            part = part_of(decode_slowly(data) if whole is None else whole, crop)
        pixels = resize(part, size_px, config.resize, flip=flip)
        if self._randaugment:
            with seeded(random.bits()):
                pixels = np.array(self._randaugment(Image.fromarray(pixels)))
        return View(pixels, crop, flip, jitter, slowly)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's default generator within the context, and restore it afterwards."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed - (1 << 64) if seed >= 1 << 63 else seed)
    try:
        yield
    finally:
        generator.set_state(state)


def fixed_view(pixels: Pixels) -> View:
    """The view of pixels that nothing is drawn for, as in validation."""
    height, width = pixels.shape[:2]
    return View(pixels, Crop(0, 0, width, height), False, None, False)


def validation_view(config: EvaluationConfig) -> Callable[[bytes], View]:
    """The function from a stored file to what validation sees: the centre `crop_px` of the image whose shorter side is
    `resize_px`. `reference` is exactly Pillow's antialiased bilinear result, with which published accuracies are
    measured."""
    how = config.resize
    if how != "reference":
        return lambda data: fixed_view(centre(data, config.resize_px, config.crop_px, how))
    composed: Callable[[Image.Image], Image.Image] = v2.Compose(
        [
            v2.Resize(config.resize_px, interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(config.crop_px),
        ]
    )
    return lambda data: fixed_view(np.asarray(composed(decode_picture(data))))
