"""Restart tiles: a JPEG stored losslessly with restart markers, so that a crop can be cut out of it undecoded.

Only the DC difference of each component's first block in a segment is coded anew, for there the prediction starts at
zero; all other codes are copied bit for bit, so that every coefficient stays. What is added stands in one piece
directly before SOS: the tile table (`imagenet_mds.jpeg.tile_table`), a DHT where the picture's own DC tables lack
a category, and DRI. So `untile_jpeg` gives the source back byte for byte, by construction: dropping that piece gives
its header, the same walk with the restarts it had gives its scan (a DC difference has one code, since tables with two
are left alone), the table keeps the only bits that are not determined, the fill before a marker, and what stands behind
the scan is untouched.

What cannot be done right is left as it is: `NotTileable` says why. The alternative, to write all coefficients anew as
`jpegtran -restart` does, takes three times as long and cannot give the source back.
"""

from functools import lru_cache

import numpy as np

from imagenet_mds.jpeg.markers import DHT, DRI, Array, header_segments
from imagenet_mds.jpeg.tile_table import LONGEST_SEGMENT_BYTES, Table, table_part
from imagenet_mds_convert.jpeg import huffman, restarts
from imagenet_mds_convert.jpeg.baseline import (
    Damaged,
    Header,
    NotTileable,
    OtherKind,
    Stream,
    lookups,
    read_header,
    unstuff,
)

GROWTH_LIMIT = 0.05
"""By how much of its size a tiled JPEG may be larger. Photographs grow by about a hundredth. What grows by more is
flat or coarse, a few bits to a block, and decoded so fast that a cut has little to save."""

_NO_RESTARTS = 1 << 62


def tile_jpeg(data: bytes, growth_limit: float = GROWTH_LIMIT) -> bytes:
    """Store a JPEG with restart markers and the table of where they lie, every coefficient unchanged.

    Args:
        data: the file's bytes.
        growth_limit: the part of its size by which it may grow.

    Raises:
        NotTileable: it stays as it is; `Damaged` or `OtherKind` where that is why.
    """
    scan = read_header(data)
    if scan.tiled:
        raise NotTileable("it is tiled")
    if any(len(set(table[16:])) < len(table) - 16 for table in scan.dc_tables):
        raise NotTileable("a DC table has two codes for a category")
    interval = segment_mcus(scan.row_mcus)
    segments = scan.mcus // interval
    too_large = NotTileable(f"it would grow by more than {growth_limit:.0%}")
    if 4 * segments > growth_limit * len(data) + 4:  # a marker and a place in the table each
        raise too_large
    stream = unstuff(data, scan)
    events, needed, (inner_fill, last_fill) = _walk(scan, stream, interval)
    if inner_fill < 0:
        raise NotTileable("its restart segments are filled up in different ways")
    dc_tables = tuple(_extended(table, mask) for table, mask in zip(scan.dc_tables, needed, strict=True))
    written, lengths = _write(stream, events, dc_tables, (0xFF, 0xFF), segments)
    if lengths.max() > LONGEST_SEGMENT_BYTES:
        raise NotTileable(f"a segment would be longer than {LONGEST_SEGMENT_BYTES:,} bytes")
    added = b"".join(
        bytes([0xFF, DHT, 0, 3 + len(table), number]) + table
        for number, table, before in zip(scan.dc_numbers, dc_tables, scan.dc_tables, strict=True)
        if table != before
    )
    tiled = b"".join(
        [
            data[: scan.sos],
            Table(lengths, inner_fill, last_fill).encode(),
            added,
            bytes([0xFF, DRI, 0, 4, interval >> 8, interval & 255]),
            data[scan.sos : scan.at],
            written,
            data[stream.end :],
        ]
    )
    if len(tiled) > (1 + growth_limit) * len(data):
        raise too_large
    return tiled


def untile_jpeg(data: bytes) -> bytes:
    """The JPEG that `tile_jpeg` was given, byte for byte.

    Raises:
        ValueError: it is no tiled JPEG, or a damaged one.
    """
    segments = header_segments(data)
    parts = [(start, part) for marker, start, end in segments if (part := table_part(data, marker, start, end))]
    if not parts:
        raise ValueError("this JPEG is not tiled")
    table, added = Table.parse([part for _, part in parts]), parts[0][0]
    try:
        scan = read_header(data)
        header = data[:added] + data[scan.sos : scan.at]
        source = read_header(header)
        lookups(source.dc_tables, source.ac_tables)  # for what it says of tables that are none
        stream = unstuff(data, scan)
        events, needed, _ = _walk(scan, stream, source.interval)
    except NotTileable as error:
        raise ValueError(f"damaged tiled JPEG: {error}") from None
    if any(mask & ~_categories(table) for table, mask in zip(source.dc_tables, needed, strict=True)):
        raise ValueError("damaged tiled JPEG: its source's DC tables cannot code it")
    fills = (0xFF if table.inner_fill else 0, table.last_fill)
    written, _ = _write(stream, events, source.dc_tables, fills, -(-source.mcus // (source.interval or source.mcus)))
    return header + written + data[stream.end :]


def whole_jpeg(data: bytes) -> str | None:
    """What is wrong with a baseline JPEG, None if it is whole: every MCU is there, then the end-of-image marker.

    Raises:
        OtherKind: it is not baseline, or unusual in a way that only a decoder can judge.
    """
    try:
        scan = read_header(data)
        _walk(scan, unstuff(data, scan), None)
    except Damaged as damage:
        return str(damage)
    return None


@lru_cache(maxsize=1024)
def segment_mcus(row_mcus: int) -> int:
    """The MCUs of a segment: the divisor of a row's number nearest 6, but at least 3, else the row.

    Shorter ones make the file grow, longer ones the cuts. Of two as near the shorter one: with 4 of 32 a crop decodes
    in a tenth less time than with 8, for a file larger by a three-hundredth.
    """
    return min(
        (length for length in range(3, row_mcus + 1) if row_mcus % length == 0),
        key=lambda length: (abs(length - 6), length),
        default=row_mcus,
    )


_ENDS = {
    huffman.SHORT: "its data end too early",
    huffman.LONG: "there are bytes too many before a restart marker",
    huffman.NO_CODE: "bits that are no code",
    huffman.PAST_BLOCK: "a block of more than 64 coefficients",
    huffman.DC_RANGE: "a DC coefficient out of range",
}


def _walk(header: Header, stream: Stream, interval: int | None) -> tuple[Array, list[int], tuple[int, int]]:
    """The events of restarts each `interval` MCUs (0: none; None: no events), categories needed, fills."""
    present = header.interval or _NO_RESTARTS
    wanted = present if interval is None else interval or _NO_RESTARTS
    starts = 0 if interval is None else 1 + (1 + len(header.slots)) * (header.mcus // present + header.mcus // wanted)
    events = np.empty((starts, 4), np.int64)
    fills = np.zeros(2, np.int64)
    ended, mcu, count = huffman.walk(
        stream.words,
        stream.bounds,
        header.blocks,
        header.slots,
        *lookups(header.dc_tables, header.ac_tables),
        (header.mcus, present, wanted),
        events,
        np.zeros(len(header.slots), np.int64),
        fills,
    )
    if ended == huffman.LONG_END:
        raise OtherKind("there are bytes behind its last block")
    if ended != huffman.DONE:
        raise Damaged(f"broken JPEG: {_ENDS[ended]}, in MCU {mcu} of {header.mcus}")
    needed = np.zeros(len(header.dc_tables), np.int64)
    restarts.needed_categories(events[:count], needed)
    return events[:count], needed.tolist(), (int(fills[0]), int(fills[1]))


def _write(
    stream: Stream, events: Array, dc_tables: tuple[bytes, ...], fills: tuple[int, int], segments: int
) -> tuple[bytes, Array]:
    """The scan's bytes and those of each segment."""
    # Everything stuffed, and an event adds at most 31 bits of code, a fill and a marker.
    out = np.empty(2 * stream.size_bytes + 12 * len(events), np.uint8)
    lengths = np.zeros(segments, np.int64)
    size = restarts.write(stream.words, events, _code_array(dc_tables), fills, out, lengths)
    return out[:size].tobytes(), lengths


@lru_cache(maxsize=64)
def _code_array(tables: tuple[bytes, ...]) -> Array:
    """(tables, categories, 2): the code of each category and its bits, none where it has no code."""
    codes = np.zeros((len(tables), 16, 2), np.int64)
    for place, table in enumerate(tables):
        code, at = 0, 16
        for length in range(1, 17):
            for symbol in table[at : at + table[length - 1]]:
                codes[place, symbol] = code, length
                code += 1
            at += table[length - 1]
            code <<= 1
    return codes


def _categories(table: bytes) -> int:
    """The categories that a DC table codes, as bits."""
    return sum(1 << symbol for symbol in set(table[16:]))


def _extended(table: bytes, needed: int) -> bytes:
    """A DC table with the categories that it lacks.

    They come behind its longest code, so that no other code changes. The code of all ones is reserved (T.81, C.2);
    where only that is left, the next length begins with two behind it. There is room: 16 bits would be full with 16
    codes at the least, and then no category is lacking.
    """
    counts, symbols = list(table[:16]), table[16:]
    for category in range(16):
        if not needed >> category & 1 or category in symbols:
            continue
        length = max(length for length in range(16) if counts[length])
        codes = sum(count << (length - shorter) for shorter, count in enumerate(counts[: length + 1]))
        if codes + 2 > 2 << length:
            length += 1
        counts[length] += 1
        symbols += bytes([category])
    return bytes(counts) + symbols
