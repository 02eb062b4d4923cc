"""The walk over a JPEG's markers, from its start to its end."""

import re

from imagenet_mds.jpeg.markers import EOI, FRAMES, SOS, STANDALONE
from imagenet_mds_convert.sources.base import Unusable

MAX_PIXELS = 1 << 27
"""Larger pictures are left out: 11,585 x 11,585 decodes to 400 MB, and Pillow's own limit, at which the readers of the
dataset would fail, is not far above."""

_AFTER_ENTROPY = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""What ends entropy-coded data: a marker that is neither a stuffed zero, a restart nor fill."""


def walk_jpeg(data: bytes, *, scans: bool = True) -> tuple[int, int, int]:
    """Walk a JPEG's markers from SOI to EOI (ITU-T T.81, annex B).

    Args:
        data: the file's bytes.
        scans: without, it ends where the first scan begins.

    Returns:
        The number of its colour components, its width and its height in pixels.

    Raises:
        Unusable: it ends before EOI, or is not a sequence of segments.
    """
    at, end, passed = 2, len(data), 0
    components = width = height = 0
    while True:
        if at + 2 > end:
            raise Unusable("truncated JPEG: the file ends before the end-of-image marker")
        if data[at] != 0xFF:
            raise Unusable(f"broken JPEG: no marker at byte {at}")
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker == 0xFF or marker in STANDALONE:
            continue
        if marker == EOI:
            if not components or not passed:
                raise Unusable("broken JPEG: it ends without an image")
            return components, width, height
        if at + 2 > end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        length = int.from_bytes(data[at : at + 2], "big")
        if length < 2 or at + length > end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        if marker in FRAMES:
            if length < 8:
                raise Unusable("broken JPEG: its frame header is cut short")
            height, width, components = (
                int.from_bytes(data[at + 3 : at + 5], "big"),
                int.from_bytes(data[at + 5 : at + 7], "big"),
                data[at + 7],
            )
            if not width or not height or not components:
                raise Unusable(f"broken JPEG: {width} x {height} pixels, {components} components")
            refuse_huge(width, height)
        at += length
        if marker == SOS:
            passed += 1
            if not scans and components:
                return components, width, height
            found = _AFTER_ENTROPY.search(data, at)
            if not found:
                raise Unusable("truncated JPEG: the file ends within the picture")
            at = found.start()


def refuse_huge(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise Unusable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")
