"""Raw samples: pixels instead of a file, for those who have disk and no processor to decode with.

The layout is the library's own `pil` encoding, so that stock readers give a picture: width, height and the length of
the mode's name as uint32, little-endian, the name (RGB), then the rows of pixels.
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
    """Pixels, (height, width, 3) in RGB, as a raw sample."""
    height, width, channels = pixels.shape
    assert channels == 3
    return _HEAD.pack(width, height, len(_MODE), _MODE) + pixels.tobytes()


def is_raw(data: bytes) -> bool:
    """Whether a stored sample is raw: no image file begins so."""
    return data[8:15] == b"\x03\0\0\0" + _MODE


def decode_raw(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a raw sample, (height, width, 3), in place and not to be written to.

    Raises:
        ValueError: it is none, or has more or less bytes than its size says.
    """
    if not is_raw(data):
        raise ValueError("this is no raw RGB sample")
    width, height, *_ = _HEAD.unpack_from(data)
    if len(data) != _HEAD.size + 3 * width * height:
        raise ValueError(f"a raw sample of {width} x {height} pixels cannot have {len(data):,} bytes")
    pixels: NDArray[Any] = np.frombuffer(data, np.uint8, offset=_HEAD.size)
    return pixels.reshape(height, width, 3)


def open_stored(data: bytes) -> Image.Image:
    """A stored sample as a picture, whichever way it is stored; a file is not decoded yet.

    Raises:
        Exception: of whatever kind Pillow raises, where it is no picture.
    """
    return Image.fromarray(decode_raw(data)) if is_raw(data) else Image.open(io.BytesIO(data))
