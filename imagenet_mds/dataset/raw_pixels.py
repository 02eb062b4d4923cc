"""Raw samples: pixels instead of an image file, for machines with more disk than processor time.

The layout is Streaming's own `pil` encoding, so that stock readers return an image: width, height and the length of the
mode's name as little-endian uint32, the name (RGB), then the rows of pixels. Stock datasets may have other modes.
"""

import io
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_MODE = b"RGB"
_HEAD = struct.Struct("<III3s")


def encode_raw(pixels: NDArray[np.uint8]) -> bytes:
    """Encode RGB pixels, (height, width, 3), as a raw sample."""
    height, width, channels = pixels.shape
    assert channels == 3
    return _HEAD.pack(width, height, len(_MODE), _MODE) + pixels.tobytes()


def is_raw(data: bytes) -> bool:
    """Return whether a stored sample is raw. No image file begins like one."""
    return data[8:15] == b"\x03\0\0\0" + _MODE


def decode_raw(data: bytes) -> NDArray[np.uint8]:
    """Return the pixels of a raw sample, (height, width, 3), as a read-only view of `data`.

    Raises:
        ValueError: `data` is not a raw sample, or its length does not fit its width and height.
    """
    if not is_raw(data):
        raise ValueError("this is no raw RGB sample")
    width, height, *_ = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + 3 * width * height:
        raise ValueError(f"a raw sample of {width} x {height} pixels cannot have {len(data):,} bytes")
    pixels: NDArray[Any] = np.frombuffer(data, np.uint8, offset=_HEAD.size)
    return pixels.reshape(height, width, 3)


def open_stored(data: bytes) -> Image.Image:
    """Open a stored sample, raw or a file, as an image. A file is not decoded yet.

    Raises:
        Exception: `data` is not an image. Pillow raises several types.
    """
    if is_raw(data):
        return Image.fromarray(decode_raw(data))
    if pixels := _of_another_mode(data):
        mode, size, start = pixels
        return Image.frombytes(mode, size, data[start:])
    return Image.open(io.BytesIO(data))


_BITS_OF_MODE = {
    "1": 1,
    **dict.fromkeys(("L", "P"), 8),
    **dict.fromkeys(("LA", "La", "PA", "I;16", "I;16L", "I;16B", "I;16N"), 16),
    **dict.fromkeys(("HSV", "LAB", "YCbCr"), 24),
    **dict.fromkeys(("RGBA", "RGBa", "RGBX", "CMYK", "I", "F"), 32),
}
"""Bits of a pixel in each of Pillow's modes but RGB."""


def _of_another_mode(data: bytes) -> tuple[str, tuple[int, int], int] | None:
    """Mode, size and start of the pixels of what stock writers store of an image that is not RGB; None for a file,
    which neither has such a name there nor the length that would fit."""
    if len(data) < 12:
        return None
    width, height, length = struct.unpack_from("<III", data)
    name = data[12 : 12 + length] if length <= 5 else b""
    mode = name.decode("ascii", "replace")
    if mode not in _BITS_OF_MODE:
        return None
    row_bytes = -(-width * _BITS_OF_MODE[mode] // 8)
    return (mode, (width, height), 12 + length) if len(data) == 12 + length + row_bytes * height else None
