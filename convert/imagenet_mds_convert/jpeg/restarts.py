"""The compiled ends of tiling a JPEG: splitting its scan at the restart markers, and writing it with others.

`huffman` walks over the bits between the markers and emits what to change. This module copies ranges of bits, four
bytes at a time.
"""

from typing import Any

import numpy as np

from imagenet_mds.jpeg.markers import Array
from imagenet_mds_convert.jpeg.huffman import compiled

ENDED, RUN_OUT, OUT_OF_ORDER, FILLED = range(4)
"""How a scan ends: at a marker that is not a restart, at the end of the file, at a restart marker out of order, or at
fill bytes before a restart marker."""

_CHUNK = 32
_U64: Any = np.uint64


@compiled
def unstuff(data: Array, at: int, raw: Array, bounds: Array) -> tuple[int, int, int, int]:
    """Remove the stuffed zeros and the restart markers from a scan.

    Args:
        data: uint8, the file.
        at: offset of its entropy-coded bytes.
        raw: uint8, filled with the bytes; must be as long as the rest of the file.
        bounds: int64, filled with the end in `raw` of each restart segment but the last; the first marker is RST0.

    Returns:
        How it ended (`ENDED` and so on), the number of bytes in `raw`, the number of bounds, the offset in the file of
        the marker that ended it.
    """
    end, filled, count = len(data), 0, 0
    while at < end:
        while at + _CHUNK <= end:
            marked = False
            for place in range(_CHUNK):
                byte = data[_U64(at + place)]
                raw[_U64(filled + place)] = byte
                marked |= byte == 0xFF
            if marked:
                break
            at += _CHUNK
            filled += _CHUNK
        while at < end and data[at] != 0xFF:
            raw[filled] = data[at]
            at += 1
            filled += 1
        if at + 1 >= end:
            break
        raw[filled] = 0xFF
        following = data[at + 1]
        if following == 0:
            filled += 1
        elif 0xD0 <= following <= 0xD7:
            if count >= len(bounds) or following != 0xD0 + (count & 7):
                return OUT_OF_ORDER, filled, count, at
            bounds[count] = filled
            count += 1
        elif following == 0xFF:
            after = at + 2
            while after < end and data[after] == 0xFF:
                after += 1
            if after >= end:
                break
            return FILLED if 0xD0 <= data[after] <= 0xD7 or data[after] == 0 else ENDED, filled, count, at
        else:
            return ENDED, filled, count, at
        at += 2
    return RUN_OUT, filled, count, at


@compiled
def needed_categories(events: Array, needed: Array) -> None:
    """Set the bits of the DC categories that a scan will need in `needed`, int64 (DC tables)."""
    for number in range(len(events)):
        if events[number, 2] >= 0:
            needed[events[number, 2]] |= 1 << _category(events[number, 3])


@compiled
def write(words: Array, events: Array, codes: Array, fills: tuple[int, int], out: Array, lengths: Array) -> int:
    """Write a scan with other restarts.

    Args:
        words: as in `huffman.walk`.
        events: int64 (n, 4), as `huffman.walk` emitted them.
        codes: int64 (DC tables, 16, 2), the code of each category and its number of bits, 0 if it has no code.
        fills: the bits that fill the last byte of each segment but the last, and of the last one.
        out: uint8, filled with the stuffed bytes; must be long enough.
        lengths: int64 (segments), filled with the bytes of each segment without its restart marker.

    Returns:
        The number of bytes written.
    """
    at, filled, segment, begun = 0, 0, 0, 0
    buffer, held = _U64(0), 0  # fewer than 8 bits, the lowest of the buffer
    for number in range(len(events)):
        until, resume, kind, value = events[number, 0], events[number, 1], events[number, 2], events[number, 3]
        place, shift = at >> 5, _U64(at & 31)
        pair = _U64(words[place])
        while at + 32 <= until:
            place += 1
            pair = pair << _U64(32) | _U64(words[_U64(place)])
            buffer = buffer << _U64(32) | (pair << shift) >> _U64(32)
            at += 32
            four = (buffer >> _U64(held)) & _U64(0xFFFFFFFF)
            # Whether the complement has a zero byte, tested on all four bytes at once.
            zero = four ^ _U64(0xFFFFFFFF)
            if (zero - _U64(0x01010101)) & ~zero & _U64(0x80808080):
                filled, _ = _flush(buffer, held + 32, out, filled)
            else:
                for byte in range(4):
                    out[_U64(filled + byte)] = four >> _U64(24 - 8 * byte)
                filled += 4
        if at < until:
            bits = until - at
            pair = pair << _U64(32) | _U64(words[place + 1])
            buffer = buffer << _U64(bits) | (pair << shift) >> _U64(64 - bits)
            filled, held = _flush(buffer, held + bits, out, filled)
        at = resume
        final = number == len(events) - 1
        if kind >= 0:
            size = _category(value)
            code, length = codes[kind, size, 0], codes[kind, size, 1]
            extra = value if value >= 0 else value + (1 << size) - 1
            buffer = (buffer << _U64(length) | _U64(code)) << _U64(size) | _U64(extra)
            held += length + size
            filled, held = _flush(buffer, held, out, filled)
        elif kind == -2 or final:
            if held:
                fill = fills[1] if final else fills[0]
                buffer = buffer << _U64(8 - held) | _U64(fill & ((1 << (8 - held)) - 1))
                filled, held = _flush(buffer, 8, out, filled)
            lengths[segment] = filled - begun
            if not final:
                out[filled] = 0xFF
                out[filled + 1] = 0xD0 + (segment & 7)
                filled += 2
            begun = filled
            segment += 1
    return filled


@compiled
def _flush(buffer: Any, held: int, out: Array, filled: int) -> tuple[int, int]:
    """Write the complete bytes of a buffer of at most 39 bits, with a zero behind each 0xFF."""
    while held >= 8:
        held -= 8
        byte = (buffer >> _U64(held)) & _U64(0xFF)
        out[filled] = byte
        filled += 1
        if byte == _U64(0xFF):
            out[filled] = 0
            filled += 1
    return filled, held


@compiled
def _category(value: int) -> int:
    """The category of a DC difference: the number of bits of its magnitude."""
    value, bits = abs(value), 0
    while value:
        value >>= 1
        bits += 1
    return bits
