"""The walk over a JPEG's markers: to its first scan, which is cheap, and from there to its end."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from imagenet_mds.jpeg.markers import EOI, FRAMES, SOF0, SOS, STANDALONE, is_scalable
from imagenet_mds_convert.sources.base import Unusable

MAX_PIXELS = 1 << 27
"""Larger images are left out. One of 11,585 x 11,585 pixels decodes to 400 MB, and Pillow's own limit, at which readers
of the dataset would fail, is not much higher."""

_AFTER_ENTROPY = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")
"""The end of entropy-coded data: a marker that is not a stuffed zero, a restart or fill."""


@dataclass(frozen=True)
class Frame:
    """What a JPEG's header says: the number of colour components, the size in pixels, the marker of the frame and the
    bits of a sample. `scan` is the offset of the entropy-coded data of the first scan, None if the file ended before
    it."""

    components: int
    width: int
    height: int
    marker: int = SOF0
    bits: int = 8
    scan: int | None = None

    @property
    def is_stock(self) -> bool:
        """Whether all stock readers take it as it is: gray or three components of 8 bits, in DCT blocks. They do not
        take CMYK and YCCK, lossless and hierarchical JPEGs."""
        return self.components < 4 and is_scalable(self.marker, self.bits)


def read_frame(data: bytes) -> Frame:
    """Walk a JPEG's markers from SOI to its first scan (ITU-T T.81, annex B).

    Args:
        data: the file's bytes, which begin with SOI.

    Raises:
        Unusable: there is no frame and scan, or the file is not a sequence of segments up to there, or is too large.
    """
    frame, scans = None, 0
    if data[2:3] not in (b"", b"\xff"):
        raise Unusable("broken JPEG: no marker at byte 2")  # Pillow would not take it for a JPEG
    for marker, start, end in _segments(data, 2):
        if marker in FRAMES:
            frame = _parse_frame(data, marker, start, end)
        elif marker == SOS:
            scans += 1
            if frame:
                return replace(frame, scan=end)
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
            _parse_frame(data, marker, start, end)


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
            # Decoders pass over bytes between two segments with a warning, and the picture is whole.
            if (at := data.find(b"\xff", at)) < 0:
                raise Unusable("truncated JPEG: the file ends before the end-of-image marker")
            continue
        marker = data[at + 1]
        at += 1 if marker == 0xFF else 2
        if marker in (0x00, 0xFF) or marker in STANDALONE:
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


def _parse_frame(data: bytes, marker: int, start: int, end: int) -> Frame:
    if end - start < 8:
        raise Unusable("broken JPEG: its frame header is cut short")
    bits, height, width, components = struct.unpack_from(">BHHB", data, start + 2)
    if not width or not height or not components:
        raise Unusable(f"broken JPEG: {width} x {height} pixels, {components} components")
    refuse_huge(width, height)
    return Frame(components, width, height, marker, bits)
