"""From a stored file to the pixels of a crop: the way that every training image takes.

JPEG is decoded by libjpeg-turbo (simplejpeg), from restart tiles only where the crop is, scaled in the DCT domain to
what the crop needs where `linear` allows it, and resized by torch, in uint8 and channels last; of raw pixels the crop
is a slice. What the fast decoder refuses, and every other format, is decoded by Pillow, always to RGB. Pillow's own
resize gives the same pixels within one level and takes several times as long.
"""

import io
import math
from typing import Any, Literal

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from imagenet_mds.dataset.raw_pixels import decode_raw, is_raw, open_stored
from imagenet_mds.jpeg.decoder_messages import damage_in
from imagenet_mds.jpeg.tiles import TileMap, cut
from imagenet_mds_train.augment.crop import Crop

Pixels = NDArray[np.uint8]
"""(height, width, 3), RGB."""

Resize = Literal["antialias", "linear"]

OVERSAMPLING: dict[Resize, float] = {"antialias": math.inf, "linear": 1.0}
"""How many times the training size a crop decoded at a fraction has at least. `antialias` takes none of them: even at
four times the size, what libjpeg makes of 8 x 8 pixels is 54 dB from Pillow's result, and 60 are promised."""


def jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Width and height of a JPEG that the fast way takes; None of anything else."""
    if not data.startswith(b"\xff\xd8"):
        return None
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None
    return (width, height) if colorspace in ("YCbCr", "Gray", "RGB") else None


def tiles_of(data: bytes) -> TileMap | None:
    """Where a JPEG's restart tiles lie; None where it has none, or a table that does not fit it."""
    try:
        return TileMap.parse(data)
    except ValueError:
        return None


def decode_fast(
    data: bytes, crop: Crop, size: tuple[int, int], tiles: TileMap | None = None, how: Resize = "antialias"
) -> Pixels | None:
    """The crop's pixels, at 1/denominator of their size.

    Args:
        data: a JPEG.
        crop: of the whole picture.
        size: width and height of the whole picture.
        tiles: where its restart tiles lie; with them only those that the crop touches are decoded.
        how: it will be resized. Where that is `linear`, colour that is stored at half the size is not smoothed when it
            is made larger: a tenth less to decode, for 0.1 to 0.4 dB of the 37 to 40 that `linear` has.

    Returns:
        (crop.height / denominator, crop.width / denominator, 3); None where the decoder refuses.

    Raises:
        ValueError: what was decoded is damaged. With tiles that is the crop's part alone.
    """
    d = crop.denominator
    corner = 0, 0
    if tiles is not None:
        box = crop.left, crop.top, crop.left + crop.width, crop.top + crop.height
        data, corner = cut(data, tiles, box)
        size = jpeg_size(data) or size
    whole = _decode_whole(
        data, fastupsample=how == "linear", min_width=-(-size[0] // d), min_height=-(-size[1] // d), min_factor=1
    )
    if whole is None:
        return None
    top, left = (crop.top - corner[1]) // d, (crop.left - corner[0]) // d
    part: Pixels = whole[top : top + crop.height // d, left : left + crop.width // d]
    return part


def _decode_whole(data: bytes, **options: Any) -> Pixels | None:
    """A JPEG's picture by libjpeg-turbo; None where it has something to say that is no damage.

    Raises:
        ValueError: the picture is damaged. Pillow, and libjpeg by itself, would invent what is missing of it.
    """
    try:
        whole: Pixels = simplejpeg.decode_jpeg(data, "RGB", **options)
    except ValueError as error:
        if reason := damage_in(error):
            raise ValueError(reason) from None
        # Bytes too many, and odd headers: Pillow passes over them, and raises where libjpeg has given up.
        return None
    return whole


def decode_picture(data: bytes) -> Image.Image:
    """A stored sample as an RGB picture, whatever it was: grayscale, CMYK and palettes become RGB.

    A JPEG's pixels are those that Pillow gives; a test holds that. But damage is not passed over.

    Raises:
        Exception: of whatever kind Pillow's plugins raise, where it does not decode.
    """
    if jpeg_size(data) is not None and (whole := _decode_whole(data)) is not None:
        return Image.fromarray(whole)
    return open_stored(data).convert("RGB")


def decode_slowly(data: bytes) -> Pixels:
    """The whole picture, by Pillow, or as it is stored where it is raw.

    Raises:
        Exception: of whatever kind Pillow's plugins raise, where it does not decode.
    """
    if is_raw(data):
        return decode_raw(data)
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def part_of(whole: Pixels, crop: Crop) -> Pixels:
    """The crop of a whole picture, in its own size."""
    return whole[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]


def centre(data: bytes, resize_px: int, crop_px: int, how: Resize) -> Pixels:
    """What validation sees of a stored file, on the fast way: the shorter side to `resize_px`, the middle `crop_px`.

    Sides are rounded as torchvision rounds them.

    Raises:
        Exception: of whatever kind Pillow's plugins raise, where it does not decode.
        ValueError: as `decode_fast`.
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
    """Pixels as a square of `size_px`, as `resize_to`."""
    return resize_to(pixels, size_px, size_px, how, flip=flip)


def resize_to(pixels: Pixels, height: int, width: int, how: Resize, *, flip: bool = False) -> Pixels:
    """Pixels in another size.

    Args:
        pixels: any size.
        height: of the result, pixels.
        width: of the result, pixels.
        how: `antialias` weighs every pixel that falls into one of the result, as Pillow and torchvision do; `linear`
            takes the nearest four, as tf.data and OpenCV do.
        flip: mirror it, left to right; torch does that by vectors, NumPy byte by byte, in twenty times the time.
    """
    # A part of a larger picture is copied: torch resizes one without gaps between its rows faster, and makes a result
    # with the channels together, which to bring together takes longer than this. Raw samples it does not take at all.
    if not (pixels.flags.c_contiguous and pixels.flags.writeable):
        pixels = pixels.copy()
    # image: (1, 3, height, width), channels last in memory, as torch's vectorised resize of bytes wants it
    image = torch.from_numpy(pixels)[None].permute(0, 3, 1, 2)
    resized = functional.interpolate(
        image, size=(height, width), mode="bilinear", antialias=how == "antialias", align_corners=False
    )
    if flip:
        resized = torch.flip(resized, [3])
    result: Pixels = resized[0].permute(1, 2, 0).numpy()
    return result
