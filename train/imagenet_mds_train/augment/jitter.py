"""ColorJitter in two halves: parameters are drawn with the sample, pixels are computed where the batch is.

On Pillow images ColorJitter takes as long as decoding a JPEG; on a GPU some milliseconds a batch. The pixels are those
of torchvision's functions on uint8, with each operation clamped and floored as there.

Private names used here and nowhere else: torchvision's conversions between RGB and HSV, which take a whole batch. Its
public `adjust_hue` does not; image by image, a batch of 128 took 94 ms and 7,329 kernels on an H200.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2.functional import to_dtype_image
from torchvision.transforms.v2.functional._color import _hsv_to_rgb, _rgb_to_hsv

from imagenet_mds.seeds import SampleRandom
from imagenet_mds_train.config.augment import ColorJitterConfig

JitterRow = tuple[float, ...]
"""The order of the four operations (brightness 0, contrast 1, saturation 2, hue 3), then the factor of each."""

_OPERATIONS = 4
IDENTITY: JitterRow = (0.0, 1.0, 2.0, 3.0, 1.0, 1.0, 1.0, 0.0)
"""Parameters that leave an image unchanged."""

_LUMA = (0.2989, 0.587, 0.114)
"""Weights of red, green and blue in gray, as torchvision has them (ITU-R BT.601)."""


def draw_jitter(random: SampleRandom, config: ColorJitterConfig) -> JitterRow:
    """Draw parameters as torchvision's ColorJitter does: a random order, factors uniform around 1 (hue: around 0)."""
    order = random.permutation(_OPERATIONS)
    factors = [
        random.uniform(1 - most, 1 + most) if most else 1.0
        for most in (config.brightness, config.contrast, config.saturation)
    ]
    hue = random.uniform(-config.hue, config.hue) if config.hue else 0.0
    return (*map(float, order), *factors, hue)


def jitter_rows(rows: Sequence[JitterRow]) -> Tensor:
    """The parameters of samples as (samples, 8), float64: 1 minus a factor is computed before rounding to float32."""
    return torch.tensor(rows, dtype=torch.float64)


def jitter(images: Tensor, parameters: Tensor) -> Tensor:
    """ColorJitter of a batch, each sample by its own parameters.

    Args:
        images: (samples, 3, height, width), uint8.
        parameters: (samples, 8), see `jitter_rows`, in CPU memory, so that the images of an operation are known without
            waiting for the device.

    Returns:
        (samples, 3, height, width), uint8, in the same memory format.
    """
    done = images.clone(memory_format=torch.preserve_format)
    for step in range(_OPERATIONS):
        for operation, apply in enumerate(_APPLY):
            factors = parameters[:, _OPERATIONS + operation]
            rows = ((parameters[:, step] == operation) & (factors != IDENTITY[_OPERATIONS + operation])).nonzero()[:, 0]
            if len(rows):
                factors, rows = factors[rows], rows.to(images.device, non_blocking=True)
                done[rows] = apply(done[rows], factors)
    return done


def _brightness(images: Tensor, factors: Tensor) -> Tensor:
    return _bytes(images * _share(factors, images))


def _contrast(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _gray(images).mean(dim=(1, 2, 3), keepdim=True), factors)


def _saturation(images: Tensor, factors: Tensor) -> Tensor:
    return _blend(images, _gray(images), factors)


def _hue(images: Tensor, factors: Tensor) -> Tensor:
    hue, saturation, value = _rgb_to_hsv(to_dtype_image(images, torch.float32, scale=True)).unbind(dim=1)
    turned = hue.add_(_share(factors, images)[:, 0]).remainder_(1.0)
    rgb: Tensor = _hsv_to_rgb(torch.stack((turned, saturation, value), dim=1))
    return torch.as_tensor(to_dtype_image(rgb, torch.uint8, scale=True))


_APPLY: tuple[Callable[[Tensor, Tensor], Tensor], ...] = (_brightness, _contrast, _saturation, _hue)


def _gray(images: Tensor) -> Tensor:
    red, green, blue = images.unbind(dim=1)
    gray = red.mul(_LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return gray.floor_()[:, None]


def _blend(images: Tensor, other: Tensor, factors: Tensor) -> Tensor:
    return _bytes(images * _share(factors, images) + other * _share(1 - factors, images))


def _share(factors: Tensor, images: Tensor) -> Tensor:
    return factors.float().view(-1, 1, 1, 1).to(images.device, non_blocking=True)


def _bytes(images: Tensor) -> Tensor:
    return images.clamp_(0, 255).to(torch.uint8)
