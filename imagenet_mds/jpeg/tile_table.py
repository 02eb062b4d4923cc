"""The tile table: where the restart segments of a tiled JPEG lie.

The table could be left out, for the markers can be found in the file; that takes ten times as long as reading it.

It stands in APP11 segments (T.81, annex B.2.4.6) directly before what else tiling adds to a header, and that directly
before SOS. All numbers are big-endian. Each of these segments is

    0xFFEB, uint16 length, 9 bytes `MDSTILES\\0`, uint8 number of this part from 0, uint8 parts, a part of the table

and the table, its parts joined, is

    uint8 version, 1
    uint8 fill of the last byte of each of the source's restart segments but the last: 0 zeros, 1 ones
    uint8 fill of the source's last entropy-coded byte: the bits below its last code
    uint16 (segments) bytes of each segment, without the restart marker behind it
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagenet_mds.jpeg.markers import APP11, Array

LONGEST_SEGMENT_BYTES = 65_535
"""What the table's uint16 can say."""

_IDENTIFIER = b"MDSTILES\0"
_PART_BYTES = 65_535 - 2 - len(_IDENTIFIER) - 2
_MOST_PARTS = 255
_VERSION = 1
_FEWEST_BYTES = 3


@dataclass(frozen=True)
class Table:
    """What the APP11 segments say: `lengths_bytes` (segments) and the two fills."""

    lengths_bytes: Array
    inner_fill: int
    last_fill: int

    def encode(self) -> bytes:
        """The APP11 segments.

        Raises:
            ValueError: the table has no room for what it shall say.
        """
        if len(self.lengths_bytes) and int(self.lengths_bytes.max()) > LONGEST_SEGMENT_BYTES:
            raise ValueError(f"a segment is longer than {LONGEST_SEGMENT_BYTES:,} bytes")
        table = bytes([_VERSION, self.inner_fill, self.last_fill]) + self.lengths_bytes.astype(">u2").tobytes()
        parts = [table[at : at + _PART_BYTES] for at in range(0, len(table), _PART_BYTES)]
        if len(parts) > _MOST_PARTS:
            raise ValueError(f"{len(self.lengths_bytes):,} segments are more than the table can hold")
        return b"".join(
            struct.pack(">BBH", 0xFF, APP11, 2 + len(_IDENTIFIER) + 2 + len(part))
            + _IDENTIFIER
            + bytes([number, len(parts)])
            + part
            for number, part in enumerate(parts)
        )

    @classmethod
    def parse(cls, parts: Sequence[bytes]) -> "Table":
        """Read the table of what `table_part` gave for the header's segments, in order.

        Raises:
            ValueError: the table is damaged.
        """
        for number, part in enumerate(parts):
            if part[:2] != bytes((number, len(parts))):
                raise ValueError("damaged tile table: its parts are not all there, in order")
        table = parts[0][2:] if len(parts) == 1 else b"".join([part[2:] for part in parts])
        if len(table) < _FEWEST_BYTES or len(table) % 2 != 1 or table[0] != _VERSION or table[1] > 1:
            raise ValueError("damaged tile table: it is of another version, or cut short")
        return cls(np.frombuffer(table, ">u2", offset=_FEWEST_BYTES).astype(np.int64), table[1], table[2])


def table_part(jpeg: bytes, marker: int, start: int, end: int) -> bytes | None:
    """What a header segment, from `start` to `end`, has of a tile table; None where it is of another kind."""
    if marker == APP11 and jpeg.startswith(_IDENTIFIER, start + 4):
        return jpeg[start + 4 + len(_IDENTIFIER) : end]
    return None
