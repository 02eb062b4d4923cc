"""Turns an image of any of Pillow's modes into RGB of 8 bits a channel.

Pillow's own `convert("RGB")` cuts values above 255 off, so 16-bit gray becomes white. Here such values are scaled.
Transparency is dropped, as every stock reader of ImageNet does (torchvision, timm, tf.data); the note says so.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, TiffTags

_TIFF_BITS = next(tag for tag, info in TiffTags.TAGS_V2.items() if info.name == "BitsPerSample")
_TIFF_PHOTOMETRIC = next(tag for tag, info in TiffTags.TAGS_V2.items() if info.name == "PhotometricInterpretation")
_TIFF_SAMPLE_FORMAT = next(tag for tag, info in TiffTags.TAGS_V2.items() if info.name == "SampleFormat")
_WHITE_IS_ZERO, _UNSIGNED = 0, 1


def to_rgb(image: Image.Image) -> tuple[Image.Image, str | None]:
    """The image as RGB, and what was lost of it, None if nothing a reader of 8 bits would see.

    Args:
        image: a loaded image.

    Raises:
        ValueError: its mode cannot be RGB, or the range of its values is unknown.
        OSError: Pillow cannot convert it.
    """
    if image.mode.startswith(("I", "F")):
        gray, note = _to_8_bits(image)
        return gray.convert("RGB"), note
    if image.mode in ("La", "RGBa"):  # premultiplied, which Pillow converts by way of the plain mode alone
        image = image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image.convert("RGB"), "without its transparency" if _is_seen_through(image) else None


def _is_seen_through(image: Image.Image) -> bool:
    """Whether any pixel is not opaque."""
    if image.mode in ("LA", "PA", "RGBA"):
        low, _ = image.getchannel("A").getextrema()
        return isinstance(low, (int, float)) and low < 255
    return image.info.get("transparency") is not None


def _to_8_bits(image: Image.Image) -> tuple[Image.Image, str | None]:
    """Gray of more than 8 bits, scaled to 8, and a note if that changed its values.

    Integers of 9 to 16 bits are scaled by their format's range, floats from 0 to 1 by that. Others are taken as they
    are where they fit into 8 bits.
    """
    values = np.asarray(image)
    low, high = float(values.min()), float(values.max())
    if not np.isfinite([low, high]).all():
        raise ValueError("it has values that are no numbers")
    if image.mode != "F" and low >= 0 and (bits := _bits(image)):
        scaled = values.astype(np.int64) >> (bits - 8)
        return _gray(255 - scaled if _white_is_zero(image) else scaled), f"{bits} bits scaled to 8"
    if low >= 0 and high <= 1 and image.mode == "F":
        return _gray(values * 255.0), "0 to 1 scaled to 8 bits"
    if low >= 0 and high <= 255:
        return _gray(values), None
    raise ValueError(f"its values are {low:g} to {high:g}, of an unknown range: convert it to 8 bits")


def _bits(image: Image.Image) -> int | None:
    """Bits of a sample of integer gray, None if only 32 are known, which no format fills."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        bits = tags.get(_TIFF_BITS, (8,))
        bits = bits[0] if isinstance(bits, tuple) else bits
        kind = tags.get(_TIFF_SAMPLE_FORMAT, (_UNSIGNED,))
        unsigned = (kind[0] if isinstance(kind, tuple) else kind) == _UNSIGNED
        return int(bits) if 8 < bits <= 16 and unsigned else None
    # Pillow reads what PNG, PGM and JPEG 2000 hold of up to 16 bits as the upper ones of 16.
    return 16 if image.mode.startswith("I;16") or image.format in ("PNG", "PPM", "JPEG2000") else None


def _white_is_zero(image: Image.Image) -> bool:
    """Whether a TIFF has its gray inverted; Pillow inverts that of 8 bits alone."""
    tags = getattr(image, "tag_v2", None)
    return tags is not None and tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO


def _gray(values: NDArray[Any]) -> Image.Image:
    return Image.fromarray(np.round(values).clip(0, 255).astype(np.uint8))
