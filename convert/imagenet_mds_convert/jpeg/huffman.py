"""The compiled part of tiling a JPEG: the walk over the blocks of its entropy-coded scan.

Only DC differences are decoded. For AC coefficients the walk needs only the number of bits and of coefficients that
each symbol takes, so one lookup of 12 bits steps over all symbols that fit in them, two or three at a time. A walk
therefore takes half as long as a decode. Tables of 13 to 16 bits would step further at a time, but they exceed the
core's L1 cache and take longer to build for files with their own tables.

Importing this module takes a third of a second, and compiled code is cached beside this file, so import it only to tile
or check images.
"""

from collections.abc import Callable
from typing import Any

import numba
import numpy as np

from imagenet_mds.jpeg.markers import Array


def compiled(function: Callable[..., Any]) -> Any:
    """The function, compiled at its first call."""
    try:
        return numba.njit(cache=True, nogil=True)(function)
    except RuntimeError:  # no place for the cache: a read-only installation of a user without a home
        return numba.njit(nogil=True)(function)


DONE, SHORT, LONG, NO_CODE, PAST_BLOCK, DC_RANGE, LONG_END = range(7)
"""How a walk ends: successfully, or with a segment that ends before its MCUs do or continues behind them, bits that are
not a code, a run past the 63rd coefficient, a DC coefficient out of range for 8-bit images, or bytes behind the last
MCU."""

OVERRUN_BYTES = 512
"""Bytes required behind the unstuffed ones: a block reads at most 64 x 31 bits before its end is checked."""

DC_LIMIT = 2047
"""8-bit samples give at most 1024; twice that still fits category 11, the largest in a baseline table."""

STEP_BITS, DC_BITS = 12, 9
_NO_STEP = 63 << 4
_END_OF_BLOCK = 1 << 15
_I64: Any = np.int64
_U32: Any = np.uint32
_U64: Any = np.uint64


@compiled
def code_lookup(counts: Array, values: Array, bits: int, lookup: Array, largest: Array, offset: Array) -> bool:
    """Fill the lookups of one Huffman table (T.81, annexes C and F.2.2.3).

    Args:
        counts: (16), the number of codes of each length.
        values: their symbols.
        bits: number of bits that index `lookup`.
        lookup: uint16 (2**bits), filled with `length << 8 | symbol` of the code that leads these bits, 0 if it is
            longer.
        largest: int64 (17), filled with the largest code of each length, -1 if there is none.
        offset: int64 (17), filled with what to add to a code of each length to get its index among the values.

    Returns:
        Whether the codes are valid; as in libjpeg, the code of all ones is not.
    """
    lookup[:] = 0
    largest[:] = -1
    code = place = 0
    for length in range(1, 17):
        offset[length] = place - code
        if counts[length - 1] and code + counts[length - 1] >= 1 << length:
            return False
        for _ in range(counts[length - 1]):
            if length <= bits:
                first = code << (bits - length)
                lookup[first : first + (1 << (bits - length))] = length << 8 | values[place]
            code += 1
            place += 1
        if counts[length - 1]:
            largest[length] = code - 1
        code <<= 1
    return True


@compiled
def step_lookup(codes: Array, steps: Array) -> None:
    """Fill the lookup that steps over several AC symbols at once.

    Args:
        codes: uint16 (4096), as `code_lookup` filled it.
        steps: uint16 (4096), filled with `end of block << 15 | coefficients << 4 | bits`; 63 coefficients and no bits
            if no symbol fits in the 12 bits.
    """
    for bits in range(1 << STEP_BITS):
        used = places = end = 0
        while not end:
            entry = codes[(bits << used) & ((1 << STEP_BITS) - 1)]
            length, run, size = entry >> 8, (entry >> 4) & 15, entry & 15
            if not entry or used + length + size > STEP_BITS:
                break
            if size == 0 and run != 15:
                end = _END_OF_BLOCK
            elif places + run + 1 > 62:
                break
            else:
                places += run + 1
            used += length + size
        steps[bits] = end | places << 4 | used if used else _NO_STEP


@compiled
def walk(
    words: Array,
    bounds: Array,
    components: Array,
    slots: Array,
    dc: tuple[Array, Array, Array, Array],
    ac: tuple[Array, Array, Array, Array, Array],
    shape: tuple[int, int, int],
    events: Array,
    last: Array,
    fills: Array,
) -> tuple[int, int, int]:
    """Walk all blocks of a scan, and emit the changes that other restart intervals require.

    This is one function, longer than a screen, because a call per block with the arrays it needs doubles the time.

    Args:
        words: uint32, the unstuffed bytes, four per word, big-endian.
        bounds: int64 (segments), the end of each segment in bytes.
        components: int64 (blocks of an MCU), the component of each block.
        slots: int64 (components, 2), the DC and the AC table of each component.
        dc: all DC tables, stacked: the lookup of 9 bits, the largest codes, their offsets, the values.
        ac: the same for all AC tables, with 12 bits, followed by the steps.
        shape: the number of MCUs, the present and the wanted number of MCUs between restarts (more than there are MCUs
            for no restarts).
        events: int64 (n, 4), filled with changes in order: the bit up to which to copy; the bit at which to resume;
            the DC table of a code to insert between them, -1 for none, -2 for a restart; the difference to code. With
            n = 0 no events are emitted.
        last: int64 (components), zeros; holds the last DC coefficient of each component.
        fills: int64 (2), filled with the fill of all segments but the last (1 for all ones or no bits, 0 for all zeros,
            -1 for neither), and with the bits below the last code of the last segment.

    Returns:
        How it ended (`DONE` and so on), the MCU at which it ended, the number of events.
    """
    mcus, present, wanted = shape
    dc_lookup, dc_largest, dc_offset, dc_values = dc
    ac_lookup, ac_largest, ac_offset, ac_values, ac_steps = ac
    count, segment, at, bit_end = 0, 0, 0, bounds[0] * 8
    ones = zeros = True
    until_present, until_wanted = present, wanted
    buffer, held = _U64(0), 0
    for mcu in range(mcus):
        begins = begins_wanted = 0
        if until_present == 0 or until_wanted == 0:
            position = resume = at * 32 - held
            if until_present == 0:
                begins, until_present = -1, present
                left = bit_end - position
                if left >= 8:
                    return LONG, mcu, count
                fill = _fill(words, bit_end, left)
                ones &= fill == (1 << left) - 1
                zeros &= fill == 0
                resume = bit_end
                segment += 1
                at, bit_end = resume // 32, bounds[segment] * 8
                held = 32 - resume % 32
                buffer = _U64(words[at]) << _U64(64 - held)
                at += 1
            if until_wanted == 0:
                begins_wanted, until_wanted = -1, wanted
            if len(events):
                count = _emit(events, count, position, resume, -2 if begins_wanted else -1, 0)
        elif mcu == 0:
            begins = begins_wanted = -1
        until_present -= 1
        until_wanted -= 1
        for block in range(len(components)):
            component = components[block]
            if held <= 32:
                buffer |= _U64(words[_U64(at)]) << _U64(32 - held)
                at += 1
                held += 32
            start = at * 32 - held
            slot = slots[component, 0]
            entry = _I64(dc_lookup[slot, buffer >> _U64(64 - DC_BITS)])
            if entry == 0:
                entry = _long_code(buffer, DC_BITS + 1, slot, dc_largest, dc_offset, dc_values)
                if entry == 0:
                    return NO_CODE, mcu, count
            length, size = entry >> 8, entry & 255
            buffer <<= _U64(length)
            difference = _I64(0)
            if size:
                difference = _I64(buffer >> _U64(64 - size))
                if difference < 1 << (size - 1):
                    difference -= (1 << size) - 1
                buffer <<= _U64(size)
            held -= length + size
            mark = 1 << component
            value = difference if begins & mark else difference + last[component]
            if not -DC_LIMIT <= value <= DC_LIMIT:
                return DC_RANGE, mcu, count
            if (begins ^ begins_wanted) & mark and len(events):
                recoded = value if begins_wanted & mark else value - last[component]
                count = _emit(events, count, start, at * 32 - held, slot, recoded)
            begins &= ~mark
            begins_wanted &= ~mark
            last[component] = value

            slot = slots[component, 1]
            steps_at = _U64(slot << STEP_BITS)
            place = 1
            while place < 64:
                if held <= 32:
                    buffer |= _U64(words[_U64(at)]) << _U64(32 - held)
                    at += 1
                    held += 32
                step = _I64(ac_steps[steps_at + (buffer >> _U64(64 - STEP_BITS))])
                further = place + ((step >> 4) & 63)
                if further < 64:
                    buffer <<= _U64(step & 15)
                    held -= step & 15
                    place = further
                    if step & _END_OF_BLOCK:
                        break
                    continue
                # Step over one symbol: its code is long, or several would reach past the block's end.
                entry = _I64(ac_lookup[slot, buffer >> _U64(64 - STEP_BITS)])
                if entry == 0:
                    entry = _long_code(buffer, STEP_BITS + 1, slot, ac_largest, ac_offset, ac_values)
                    if entry == 0:
                        return NO_CODE, mcu, count
                size = entry & 15
                length = (entry >> 8) + size
                buffer <<= _U64(length)
                held -= length
                if size == 0 and entry & 0xF0 != 0xF0:
                    break
                place += ((entry >> 4) & 15) + 1
                if place > 64:
                    return PAST_BLOCK, mcu, count
            if at * 32 - held > bit_end:
                return SHORT, mcu, count
    position = at * 32 - held
    left = bit_end - position
    if len(events):
        count = _emit(events, count, position, position, -1, 0)
    if left >= 8:
        return LONG_END, mcus, count
    fills[0] = 1 if ones else 0 if zeros else -1
    fills[1] = _fill(words, bit_end, left)
    return DONE, mcus, count


@compiled
def _emit(events: Array, count: int, until: int, resume: int, kind: int, value: int) -> int:
    """Append an event. Assigning field by field compiles in a tenth of the time of assigning a row."""
    events[count, 0] = until
    events[count, 1] = resume
    events[count, 2] = kind
    events[count, 3] = value
    return count + 1


@compiled
def _fill(words: Array, bit_end: int, left: int) -> int:
    """The last `left` bits (fewer than 8) before the end of a byte."""
    byte = words[(bit_end - 1) // 32] >> _U32(-bit_end % 32)
    fill: int = _I64(byte) & ((1 << left) - 1)
    return fill


@compiled
def _long_code(buffer: Any, length: int, slot: int, largest: Array, offset: Array, values: Array) -> int:
    """The entry of a code of at least `length` bits, 0 if there is none."""
    entry: int = _I64(0)
    while length <= 16:
        code = _I64(buffer >> _U64(64 - length))
        if code <= largest[slot, length]:
            entry = length << 8 | _I64(values[slot, code + offset[slot, length]])
            break
        length += 1
    return entry
