"""What happens to a picture before the network sees it: random in training, fixed in validation.

The operations are torchvision's. They draw from torch's global generator, so each sample's are run under that generator
seeded with the sample's own seed, and its state is put back: nothing else in the process is disturbed.
"""

import contextlib
import io
from collections.abc import Callable, Iterator

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.functional import InterpolationMode

from imagenet_mds.config import AugmentConfig, EvaluationConfig

Transform = Callable[[Image.Image], Tensor]
"""An RGB picture to a uint8 tensor of (3, height, width)."""


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """torch's default generator, seeded with `seed` inside and as it was outside."""
    generator = torch.default_generator
    state = generator.get_state()
    generator.manual_seed(seed - (1 << 64) if seed >= 1 << 63 else seed)
    try:
        yield
    finally:
        generator.set_state(state)


def decode(data: bytes) -> Image.Image:
    """An image file to an RGB picture, whatever it was: grayscale, CMYK and palettes become RGB."""
    return Image.open(io.BytesIO(data)).convert("RGB")


def training_transform(config: AugmentConfig) -> Transform:
    """RandomResizedCrop, flip, RandAugment, ColorJitter, in this order, as far as they are configured."""
    steps: list[Transform] = [
        v2.RandomResizedCrop(
            config.size_px,
            scale=config.scale,
            ratio=config.ratio,
            interpolation=InterpolationMode.BILINEAR,
            antialias=True,
        ),
        v2.RandomHorizontalFlip(config.flip_probability),
    ]
    if config.randaugment:
        steps.append(v2.RandAugment(num_ops=config.randaugment.depth, magnitude=config.randaugment.severity))
    if config.color_jitter:
        steps.append(v2.ColorJitter(**config.color_jitter.model_dump()))
    composed: Transform = v2.Compose([*steps, v2.PILToTensor()])
    return composed


def validation_transform(config: EvaluationConfig) -> Transform:
    """The shorter side to `resize_px` with antialiased bilinear interpolation, then the centre `crop_px`."""
    composed: Transform = v2.Compose(
        [
            v2.Resize(config.resize_px, interpolation=InterpolationMode.BILINEAR, antialias=True),
            v2.CenterCrop(config.crop_px),
            v2.PILToTensor(),
        ]
    )
    return composed
