"""Parses a baseline JPEG's header, tables and entropy-coded bytes for `imagenet_mds_convert.jpeg.huffman`.

A file is `Damaged` if libjpeg warns about it or gives up, and also if it has bits that no encoder writes and that
libjpeg ignores silently (a block of more than 64 coefficients). It is `OtherKind` if libjpeg may read it but this
module does not (progressive, CMYK, several scans); then the decoder must judge it. A file found complete here therefore
decodes without a warning, and finding that takes a fraction of a decode.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from imagenet_mds.jpeg.markers import APP0, APP14, COM, DHT, DQT, DRI, EOI, FRAMES, SOS, Array, header_segments
from imagenet_mds.jpeg.tile_table import table_part
from imagenet_mds_convert.jpeg import huffman, restarts

_LARGEST_SIDE = 65_500  # libjpeg's JPEG_MAX_DIMENSION
_MOST_BLOCKS = 10  # in an MCU: T.81, B.2.3
_OTHERS_BEHIND = frozenset({0xDC, SOS, DHT, DQT, DRI, COM, *range(APP0, APP0 + 16)})  # 0xDC is DNL


class NotTileable(Exception):  # noqa: N818 # it describes the image, not an error of the program
    """A JPEG that cannot be tiled; the message is the reason."""


class OtherKind(NotTileable):
    """A kind of JPEG that is not read here, so only its decoder can tell whether it is complete."""


class Damaged(NotTileable):
    """A damaged or truncated JPEG; the message says how."""


@dataclass(frozen=True)
class _Layout:
    """A parsed frame header: the MCUs per row and in total, and the component index of each block of an MCU."""

    row_mcus: int
    mcus: int
    blocks: Array


@dataclass(frozen=True)
class Header:
    """A baseline header. `sos` and `at` are the offsets of SOS and of the entropy-coded bytes. Tables are 16 counts,
    then the symbols, and `dc_numbers` are the DC tables' numbers in the file. An `interval` of 0 means no restarts."""

    sos: int
    at: int
    row_mcus: int
    mcus: int
    blocks: Array
    slots: Array
    dc_numbers: tuple[int, ...]
    dc_tables: tuple[bytes, ...]
    ac_tables: tuple[bytes, ...]
    interval: int
    tiled: bool


def read_header(data: bytes) -> Header:
    """Parse a header up to the entropy-coded bytes.

    Raises:
        OtherKind, Damaged: it is not the header of an undamaged baseline JPEG.
    """
    try:
        segments = header_segments(data)
    except ValueError as error:
        raise Damaged(str(error)) from None
    frame, interval, tiled = b"", 0, False
    tables: dict[int, bytes] = {}
    quantizers: set[int] = set()
    for marker, start, end in segments:
        content = data[start + 4 : end]
        if marker in FRAMES:
            if marker > 0xC1:
                raise OtherKind("it is progressive, lossless or arithmetic")
            if frame:
                raise Damaged("broken JPEG: two frame headers")
            frame = content
        elif marker == DHT:
            tables |= _huffman_tables(content)
        elif marker == DQT:
            quantizers |= _quantizers(content)
        elif marker == DRI:
            if len(content) != 2:
                raise Damaged("broken JPEG: its restart interval is cut short")
            interval = content[0] << 8 | content[1]
        elif APP0 <= marker < APP0 + 16:
            tiled |= table_part(data, marker, start, end) is not None
            if _of_colour_unknown(marker, content):
                raise OtherKind("its JFIF or Adobe marker is of an unknown kind")
        elif marker not in (SOS, COM):
            raise OtherKind(f"its header has a marker 0x{marker:02X}")
    layout = _layout(frame)
    numbers = _scan_tables(content, frame)  # `content` is that of SOS, the last segment
    if missing := {frame[8 + 3 * place] for place in range(frame[5])} - quantizers:
        raise Damaged(f"broken JPEG: no quantization table {min(missing)}")
    dc_numbers = tuple(dict.fromkeys(number >> 4 for number in numbers))
    ac_numbers = tuple(dict.fromkeys(number & 15 | 16 for number in numbers))
    if not tables.keys() >= {*dc_numbers, *ac_numbers}:
        raise OtherKind("it lacks Huffman tables, as frames of motion JPEG do")
    slots = [(dc_numbers.index(number >> 4), ac_numbers.index(number & 15 | 16)) for number in numbers]
    return Header(
        segments[-1][1],
        segments[-1][2],
        layout.row_mcus,
        layout.mcus,
        layout.blocks,
        np.array(slots, np.int64),
        dc_numbers,
        tuple(tables[number] for number in dc_numbers),
        tuple(tables[number] for number in ac_numbers),
        interval,
        tiled,
    )


def _of_colour_unknown(marker: int, content: bytes) -> bool:
    """Whether an APPn segment declares the colour space in a way that libjpeg warns about."""
    if marker == APP0:
        return len(content) >= 14 and content.startswith(b"JFIF\0") and content[5] != 1
    return marker == APP14 and len(content) >= 12 and content.startswith(b"Adobe") and content[11] > 2


@lru_cache(maxsize=1024)
def _layout(frame: bytes) -> _Layout:
    if len(frame) < 6 or not frame[5] or len(frame) != 6 + 3 * frame[5]:
        raise Damaged("broken JPEG: no frame header, or one cut short")
    height, width = frame[1] << 8 | frame[2], frame[3] << 8 | frame[4]
    if frame[0] != 8:
        raise OtherKind(f"it has {frame[0]} bits a sample")
    if frame[5] not in (1, 3):
        raise OtherKind(f"it has {frame[5]} components")
    if not 1 <= height <= _LARGEST_SIDE or not 1 <= width <= _LARGEST_SIDE:
        raise OtherKind(f"it says {width} x {height} pixels")
    factors = [(value >> 4, value & 15) for value in frame[7::3]]
    most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
    readable = all(h in (1, 2, 3, 4) and v in (1, 2, 3, 4) and not (most_h % h or most_v % v) for h, v in factors)
    if len(factors) == 1:
        factors, most_h, most_v = [(1, 1)], 1, 1  # not interleaved: an MCU is one block (T.81, A.2.2)
    blocks = [place for place, (h, v) in enumerate(factors) for _ in range(h * v)]
    if not readable or len(set(frame[6::3])) < len(factors) or len(blocks) > _MOST_BLOCKS:
        raise OtherKind("its components are sampled as no decoder reads them")
    row_mcus = -(-width // (8 * most_h))
    return _Layout(row_mcus, row_mcus * -(-height // (8 * most_v)), np.array(blocks, np.int64))


@lru_cache(maxsize=1024)
def _scan_tables(content: bytes, frame: bytes) -> list[int]:
    """The components' table numbers, with the DC table in the upper four bits."""
    components = frame[5]
    if not content or len(content) != 4 + 2 * content[0]:
        raise Damaged("broken JPEG: its scan header is cut short")
    if content[0] != components or content[1:-3:2] != frame[6::3]:
        raise OtherKind("it has several scans")
    if content[-3:] != b"\0\x3f\0":
        raise OtherKind("its scan header is not a baseline one's")
    return list(content[2:-3:2])


@lru_cache(maxsize=256)
def _huffman_tables(content: bytes) -> dict[int, bytes]:
    """The tables of a DHT segment by number; AC tables have 16 added."""
    tables, at = {}, 0
    while at < len(content):
        number, end = content[at], at + 17 + sum(content[at + 1 : at + 17])
        table = content[at + 1 : end]
        if end > len(content) or number & 15 > 3 or number > 0x13 or len(table) > 16 + 256:
            raise Damaged("broken JPEG: its Huffman tables are cut short")
        tables[number] = table
        at = end
    return tables


def _quantizers(content: bytes) -> set[int]:
    """The numbers of the tables in a DQT segment."""
    numbers, at = set(), 0
    while at < len(content):
        number = content[at] & 15
        at += 1 + (128 if content[at] >> 4 else 64)
        if at > len(content) or number > 3:
            raise Damaged("broken JPEG: its quantization tables are cut short")
        numbers.add(number)
    return numbers


@dataclass(frozen=True)
class Stream:
    """An unstuffed scan: `words` and `bounds` as in `huffman.walk`; `end` is the offset in the file of its end."""

    words: Array
    bounds: Array
    size_bytes: int
    end: int


def unstuff(data: bytes, header: Header) -> Stream:
    """Find the end of the scan, and remove stuffing and restart markers from it.

    Raises:
        OtherKind, Damaged: no end-of-image marker follows it, or its restart markers are not those announced.
    """
    left = len(data) - header.at
    # A block takes two bits at least, so a header that claims more pixels than that is refused before any allocation.
    if header.mcus * len(header.blocks) > 4 * left:
        raise Damaged("truncated JPEG: it is too short for its picture")
    markers = (header.mcus - 1) // header.interval if header.interval else 0
    if 2 * markers > left:
        raise Damaged("truncated JPEG: it is too short for its restart markers")
    raw = np.empty(-(-(left + huffman.OVERRUN_BYTES) // 4) * 4, np.uint8)
    bounds = np.empty(markers + 1, np.int64)
    ended, size, found, end = restarts.unstuff(np.frombuffer(data, np.uint8), header.at, raw, bounds[:-1])
    if ended == restarts.FILLED:
        raise OtherKind("it has fill bytes before a restart marker")
    if ended == restarts.RUN_OUT:
        raise Damaged("truncated JPEG: the file ends before the end-of-image marker")
    if ended == restarts.OUT_OF_ORDER or found < markers:
        raise Damaged("broken JPEG: its restart markers are not all there, in order")
    at = end
    while data[at] == 0xFF:
        at += 1
    if data[at] != EOI:
        if data[at] in _OTHERS_BEHIND:
            raise OtherKind("it has several scans, or something else behind its first one")
        raise Damaged(f"broken JPEG: a marker 0x{data[at]:02X} within the picture")
    bounds[-1] = size
    filled = -(-(size + huffman.OVERRUN_BYTES) // 4) * 4
    raw[size:filled] = 0
    return Stream(raw[:filled].view(">u4").astype(np.uint32), bounds, size, end)


@lru_cache(maxsize=64)
def lookups(dc_tables: tuple[bytes, ...], ac_tables: tuple[bytes, ...]) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Lookup tables for `huffman.walk`.

    Raises:
        Damaged: the tables are not valid Huffman tables.
    """
    dc = _stacked(dc_tables, huffman.DC_BITS)
    if (dc[3] > 15).any():
        raise Damaged("broken JPEG: a DC table with a category above 15")
    ac = _stacked(ac_tables, huffman.STEP_BITS)
    steps = np.empty_like(ac[0])
    for place in range(len(ac_tables)):
        huffman.step_lookup(ac[0][place], steps[place])
    return dc, (*ac, steps.ravel())


def _stacked(tables: tuple[bytes, ...], bits: int) -> tuple[Array, Array, Array, Array]:
    count = len(tables)
    lookup, values = np.zeros((count, 1 << bits), np.uint16), np.zeros((count, 256), np.uint8)
    largest, offset = np.zeros((count, 17), np.int64), np.zeros((count, 17), np.int64)
    for place, table in enumerate(tables):
        content = np.frombuffer(table, np.uint8)
        values[place, : len(table) - 16] = content[16:]
        if not huffman.code_lookup(content[:16], values[place], bits, lookup[place], largest[place], offset[place]):
            raise Damaged("broken JPEG: a Huffman table with more codes than there are")
    return lookup, largest, offset, values
