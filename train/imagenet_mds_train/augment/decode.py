"""From a stored file to the pixels of a crop: the path of every training image.

A JPEG is decoded by libjpeg-turbo (simplejpeg): with restart tiles only where the crop is, and scaled in the DCT domain
to what the crop needs where `linear` allows it. A crop of at least twice the training size is decoded from the
half-size copy of its image, if the dataset has these copies. It is resized by torch, in uint8 and channels last. The
crop of raw pixels is a slice. Pillow decodes what the fast decoder refuses, and every other format, always to RGB.
Pillow's own resize gives the same pixels within one level and takes several times as long.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image

from imagenet_mds.dataset.raw_pixels import decode_raw, is_raw, open_stored
from imagenet_mds.dataset.rgb import to_rgb
from imagenet_mds.jpeg.decoder_messages import damage_in
from imagenet_mds.jpeg.markers import frame_is_scalable
from imagenet_mds.jpeg.tiles import TileMap, cut
from imagenet_mds_train.augment.crop import DCT_DENOMINATORS, Crop

Pixels = NDArray[np.uint8]
"""(height, width, 3), RGB."""

Resize = Literal["antialias", "linear"]

_RESIZES: dict[Resize, Callable[..., torch.Tensor]] = {
    "antialias": torch._C._nn._upsample_bilinear2d_aa,  # type: ignore[attr-defined] # torch's stub lacks it
    "linear": torch._C._nn.upsample_bilinear2d,  # type: ignore[attr-defined] # torch's stub lacks it
}
"""What `torch.nn.functional.interpolate` calls, after Python that takes 10 us: a tenth of the time of a stored crop."""


def fractions(how: Resize, half: bytes) -> tuple[int, ...]:
    """Denominators of the fractions of its size that a crop may be decoded at, the largest first.

    `antialias` never scales in the DCT domain: even at four times the training size, libjpeg's scaling of 8 x 8 pixels
    is 54 dB from Pillow's result, and 60 are promised. From a half-size copy, `antialias` is 38 to 39 dB from that
    result (median of photographs of ImageNet at 88 to 176 px, copies of quality 90), and `linear` 33 to 35; without a
    copy, `linear` is 35 to 38 dB from it.
    """
    if how == "linear":
        return DCT_DENOMINATORS
    return (2,) if half else ()


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that the fast decoder can read; None for anything else."""
    if not data.startswith(b"\xff\xd8") or not frame_is_scalable(data):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in ("YCbCr", "Gray", "RGB") else None


def tiles_of(data: bytes) -> TileMap | None:
    """Where the restart tiles of a JPEG lie; None where it has none, or a table that does not fit."""
    try:
        return TileMap.parse(data)
    except ValueError:
        return None


def decode_crop(data: bytes, half: bytes, crop: Crop, size: tuple[int, int], how: Resize) -> Pixels | None:
    """Decode the pixels of a crop, at 1/denominator of their size, from a JPEG or from its half-size copy.

    Args:
        data: the JPEG.
        half: its half-size copy, empty if it has none.
        crop: in the whole image.
        size: width and height of the whole image.
        how: how the crop will be resized; see `decode_fast`.

    Returns:
        See `decode_fast`.

    Raises:
        ValueError: see `decode_fast`.
    """
    if half and crop.denominator > 1:
        data, crop, size = half, crop.halved, ((size[0] + 1) // 2, (size[1] + 1) // 2)
    return decode_fast(data, crop, size, tiles_of(data), how)


def decode_fast(
    data: bytes, crop: Crop, size: tuple[int, int], tiles: TileMap | None = None, how: Resize = "antialias"
) -> Pixels | None:
    """Decode the pixels of a crop, at 1/denominator of their size.

    Args:
        data: a JPEG.
        crop: in the whole image.
        size: width and height of the whole image.
        tiles: where its restart tiles lie; only those that the crop touches are decoded.
        how: how the crop will be resized. With `linear`, colour stored at half the size is not smoothed when it is
            upsampled, which saves a tenth of the decode and costs 0.1 to 0.4 dB of the 37 to 40 that `linear` has.

    Returns:
        (crop.height / denominator, crop.width / denominator, 3); None where the decoder refuses the file.

    Raises:
        ValueError: the decoded part is damaged. With tiles, that is only the part that the crop touches.
    """
    d = crop.denominator
    corner = 0, 0
    if tiles is not None:
        box = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
        data, size, corner = cut(data, tiles, box)
    whole = _decode_whole(
        data, fastupsample=how == "linear", min_width=-(-size[0] // d), min_height=-(-size[1] // d), min_factor=1
    )
    if whole is None:
        return None
    top, left = (crop.top - corner[1]) // d, (crop.left - corner[0]) // d
    part: Pixels = whole[top : top + crop.height // d, left : left + crop.width // d]
    return part


def _decode_whole(data: bytes, **options: Any) -> Pixels | None:
    """Decode a JPEG by libjpeg-turbo; None where it complains about something other than damage.

    Raises:
        ValueError: the image is damaged. Pillow, and libjpeg without strict mode, would invent what is missing.
    """
    try:
        whole: Pixels = simplejpeg.decode_jpeg(data, "RGB", **options)
    except ValueError as error:
        if reason := damage_in(error):
            raise ValueError(reason) from None
        # Extra bytes and odd headers: Pillow ignores them, and raises where libjpeg gives up.
        return None
    return whole


def decode_picture(data: bytes) -> Image.Image:
    """Decode a stored sample into an RGB image, whatever its mode: grayscale, CMYK and palettes become RGB.

    The pixels of a JPEG are those that Pillow gives; a test holds that. Unlike with Pillow, damage is an error.

    Raises:
        Exception: any kind that Pillow's plugins raise, where the sample does not decode.
    """
    if jpeg_size(data) is not None and (whole := _decode_whole(data)) is not None:
        return Image.fromarray(whole)
    image = open_stored(data)
    image.load()
    rgb, _ = to_rgb(image)
    return rgb


def decode_slowly(data: bytes) -> Pixels:
    """Decode a whole image by Pillow, or take raw pixels as they are stored.

    Raises:
        Exception: any kind that Pillow's plugins raise, where the image does not decode.
    """
    if is_raw(data):
        return decode_raw(data)
    image = open_stored(data)
    image.load()  # `to_rgb` asks for a loaded one
    rgb, _ = to_rgb(image)
    return np.array(rgb)


def part_of(whole: Pixels, crop: Crop) -> Pixels:
    """Cut a crop out of a whole image, without resizing it."""
    return whole[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def centre(data: bytes, resize_px: int, crop_px: int, how: Resize) -> Pixels:
    """What validation sees of a stored file, by the fast decoder: the centre `crop_px` of the image whose shorter side
    is `resize_px`. Sides are rounded as torchvision rounds them.

    Raises:
        Exception: any kind that Pillow's plugins raise, where the file does not decode.
        ValueError: see `decode_fast`.
    """
    size, whole = jpeg_size(data), None
    if size is not None:
        whole = decode_fast(data, Crop(0, 0, *size), size, how=how)
    if whole is None:
        whole = decode_slowly(data)
    height, width = whole.shape[:2]
    short = min(height, width)
    resized = resize_to(whole, resize_px * height // short, resize_px * width // short, how)
    top, left = (round((side - crop_px) / 2) for side in resized.shape[:2])
    return resized[top : top + crop_px, left : left + crop_px]


def resize(pixels: Pixels, size_px: int, how: Resize, *, flip: bool = False) -> Pixels:
    """Resize pixels to a square of `size_px`; see `resize_to`."""
    return resize_to(pixels, size_px, size_px, how, flip=flip)


def resize_to(pixels: Pixels, height: int, width: int, how: Resize, *, flip: bool = False) -> Pixels:
    """Resize pixels.

    Args:
        pixels: of any size.
        height: of the result, in pixels.
        width: of the result, in pixels.
        how: `antialias` weighs every pixel that falls into one of the result, as Pillow and torchvision do; `linear`
            takes the nearest four, as tf.data and OpenCV do.
        flip: mirror the result, left to right. torch does this vectorised; NumPy, byte by byte, takes twenty times as
            long.
    """
    # A part of a larger image is copied first: torch resizes rows without gaps faster, and keeps the channels together
    # in the result, where bringing them together later would take longer than the copy. It refuses read-only raw
    # pixels.
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):
        pixels = pixels.copy()
    # image: (1, 3, height, width), channels last in memory, as torch's vectorised resize of bytes wants it. NumPy makes
    # the view in a quarter of the time that torch takes.
    image = torch.from_numpy(pixels.reshape(1, *pixels.shape).transpose(0, 3, 1, 2))
    resized = _RESIZES[how](image, (height, width), False, None)
    if flip:
        resized = torch.flip(resized, [3])
    result: Pixels = resized.numpy()[0].transpose(1, 2, 0)
    return result
