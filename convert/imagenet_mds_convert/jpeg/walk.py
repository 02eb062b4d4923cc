"""The walk over a JPEG's markers: to its first scan, which is cheap, and from there to its end."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from imagenet_mds.jpeg.markers import EOI, FRAMES, SOS, STANDALONE
from imagenet_mds_convert.sources.base import Unusable

MAX_PIXELS = 1 << 27
"""Larger images are left out. One of 11,585 x 11,585 pixels decodes to 400 MB, and Pillow's own limit, at which readers
of the dataset would fail, is not much higher."""

_AFTER_ENTROPY = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The end of entropy-coded data: a marker that is not a stuffed zero, a restart or fill."""


@dataclass(frozen=True)
class Frame:
    """What a JPEG's header says: the number of colour components, and the size in pixels. `scan` is the offset of the
    entropy-coded data of the first scan, None if the file ended before it."""

    components: int
    width: int
    height: int
    scan: int | None = None

    @property
    def is_cmyk(self) -> bool:
        """Whether it has four components, CMYK or YCCK."""
        return self.components == 4


def read_frame(data: bytes) -> Frame:
    """Walk a JPEG's markers from SOI to its first scan (ITU-T T.81, annex B).

    Args:
        data: the file's bytes, which begin with SOI.

    Raises:
        Unusable: there is no frame and scan, or the file is not a sequence of segments up to there, or is too large.
    """
    frame, scans = None, 0
    for marker, start, end in _segments(data, 2):
        if marker in FRAMES:
            frame = _parse_frame(data, start, end)
        elif marker == SOS:
            scans += 1
            if frame:
                return Frame(frame.components, frame.width, frame.height, scan=end)
    if not frame or not scans:
        raise Unusable("broken JPEG: it ends without an image")
    return frame


def walk_to_end(data: bytes, frame: Frame) -> None:
    """Walk on from a JPEG's first scan to EOI.

    Args:
        data: the file's bytes.
        frame: what `read_frame` returned.

    Raises:
        Unusable: the file ends before EOI, or is not a sequence of segments.
    """
    if frame.scan is None:
        return
    for marker, start, end in _segments(data, _end_of_entropy(data, frame.scan)):
        if marker in FRAMES:
            _parse_frame(data, start, end)


def refuse_huge(width: int, height: int) -> None:
    """Refuse an image of more than `MAX_PIXELS`.

    Raises:
        Unusable: it has more.
    """
    if width * height > MAX_PIXELS:
        raise Unusable(f"{width} x {height} pixels, more than {MAX_PIXELS:,}")


def _segments(data: bytes, at: int) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment from offset `at` to EOI. Entropy-coded data behind SOS is passed over only
    when the next segment is asked for."""
    file_end = len(data)
    while True:
        if at + 2 > file_end:
            raise Unusable("truncated JPEG: the file ends before the end-of-image marker")
        if data[at] != 0xFF:
            raise Unusable(f"broken JPEG: no marker at byte {at}")
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker == 0xFF or marker in STANDALONE:
            continue
        if marker == EOI:
            return
        if at + 2 > file_end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        end = at + int.from_bytes(data[at : at + 2], "big")
        if end < at + 2 or end > file_end:
            raise Unusable("truncated JPEG: the file ends within a segment")
        yield marker, at, end
        at = _end_of_entropy(data, end) if marker == SOS else end


def _end_of_entropy(data: bytes, at: int) -> int:
    if not (found := _AFTER_ENTROPY.search(data, at)):
        raise Unusable("truncated JPEG: the file ends within the picture")
    return found.start()


def _parse_frame(data: bytes, start: int, end: int) -> Frame:
    if end - start < 8:
        raise Unusable("broken JPEG: its frame header is cut short")
    height, width, components = struct.unpack_from(">HHB", data, start + 3)
    if not width or not height or not components:
        raise Unusable(f"broken JPEG: {width} x {height} pixels, {components} components")
    refuse_huge(width, height)
    return Frame(components, width, height)
