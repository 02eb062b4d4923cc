"""JPEG markers (ITU-T T.81, annex B) and the walk over a file's header."""

from typing import Any, TypeAlias

import numpy as np

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
DHT, EOI, SOS, DQT, DRI, APP0, APP11, APP14, COM = 0xC4, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEB, 0xEE, 0xFE
FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
SOF0 = 0xC0
_SCALABLE = frozenset({SOF0, 0xC1, 0xC2, 0xC9, 0xCA})
STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
"""Markers without a segment: TEM, RST0 to RST7, SOI. (EOI has none either, but it ends the file.)"""

_NOT_IN_A_HEADER = STANDALONE | {0x00, EOI}  # 0x00 is a stuffed zero of entropy-coded data


def is_scalable(frame_marker: int, bits: int) -> bool:
    """Whether libjpeg can decode a JPEG of this frame at a fraction of its size: sequential or progressive DCT of 8
    bits. Of a lossless one (SOF3), its scaled decode writes past the buffer."""
    return frame_marker in _SCALABLE and bits == 8


def frame_is_scalable(jpeg: bytes) -> bool:
    """`is_scalable` of a JPEG's first frame, found as libjpeg finds it, which passes over bytes between segments; False
    if there is none."""
    at, size = 2, len(jpeg)
    while (at := jpeg.find(b"\xff", at)) >= 0 and at + 4 < size:
        marker = jpeg[at + 1]
        if marker in FRAMES:
            return is_scalable(marker, jpeg[at + 4])
        if marker in (SOS, EOI):
            return False
        at += 1 if marker in (0x00, 0xFF) else 2
        if marker not in _NOT_IN_A_HEADER and marker != 0xFF:
            at += jpeg[at] << 8 | jpeg[at + 1]
    return False


def header_segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """List the segments of a JPEG's header, from the one after SOI to SOS.

    Returns:
        (marker, start, end) of each segment, where `start` is the offset of the marker's 0xFF.

    Raises:
        ValueError: the file is not a JPEG, or not a sequence of segments up to SOS.
    """
    if not jpeg.startswith(b"\xff\xd8"):
        raise ValueError("no JPEG: it does not begin with the start-of-image marker")
    found, at, size = [], 2, len(jpeg)
    while at + 4 <= size:
        if jpeg[at] != 0xFF or (marker := jpeg[at + 1]) in _NOT_IN_A_HEADER:
            raise ValueError(f"broken JPEG: no header segment at byte {at}")
        if marker == 0xFF:
            at += 1
            continue
        length = jpeg[at + 2] << 8 | jpeg[at + 3]
        end = at + 2 + length
        if length < 2 or end > size:
            break
        found.append((marker, at, end))
        if marker == SOS:
            return found
        at = end
    raise ValueError("truncated JPEG: the file ends within its header")
