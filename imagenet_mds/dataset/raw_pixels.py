"""Raw samples: pixels instead of an image file, for machines with more disk than processor time.

The layout is Streaming's own `pil` encoding, so that stock readers return an image: width, height and the length of the
mode's name as little-endian uint32, the name (RGB), then the rows of pixels.
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
    return Image.fromarray(decode_raw(data)) if is_raw(data) else Image.open(io.BytesIO(data))
