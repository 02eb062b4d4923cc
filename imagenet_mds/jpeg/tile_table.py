"""The tile table: where the restart segments of a tiled JPEG are.

Readers could search the file for the restart markers instead; that takes ten times as long as reading the table.

The table is in APP11 segments (T.81, annex B.2.4.6), followed by what else tiling adds to a header, then by SOS. All
numbers are big-endian. Each of these segments is

    0xFFEB, uint16 length, 9 bytes `MDSTILES\\0`, uint8 number of this part from 0, uint8 parts, a part of the table

and the table, its parts joined, is

    uint8 version, 1
    uint8 fill of the last byte of each of the source's restart segments but the last: 0 zeros, 1 ones
    uint8 fill of the source's last entropy-coded byte: the bits below its last code
    uint16 (segments,) bytes of each segment, without the restart marker after it
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from imagenet_mds.jpeg.markers import APP11, Array

LONGEST_SEGMENT_BYTES = 65_535
"""Limit of the table's uint16."""

TILE_GROWTH = 0.25
"""A file that tiles would make larger by a greater share is stored without them. Of 1,000 photographs of ImageNet (one
of each class) the one that grows most grows by 15.6%, and all together by 1.95%. A flat image may double."""

EARLIER_TILE_GROWTH = 0.05
"""The limit of versions that did not record it. It left 78 of the same photographs without tiles, whose crops are made
1.25 to 1.56 times as fast with them: no less than those of the others. Together they grew by 1.58%."""

_IDENTIFIER = b"MDSTILES\0"
_PART_BYTES = 65_535 - 2 - len(_IDENTIFIER) - 2
_MOST_PARTS = 255
_VERSION = 1
_FEWEST_BYTES = 3


@dataclass(frozen=True)
class Table:
    """The content of the APP11 segments: `lengths_bytes`, (segments,), and the two fills."""

    lengths_bytes: Array
    inner_fill: int
    last_fill: int

    def encode(self) -> bytes:
        """Encode the table as APP11 segments.

        Raises:
            ValueError: a segment is too long for the table, or there are too many.
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
        """Decode the table from its parts, which `table_part` returns, in the order of the header's segments.

        Raises:
            ValueError: the table is damaged.
        """
        for number, part in enumerate(parts):
            if part[:2] != bytes((number, len(parts))):
                raise ValueError("damaged tile table: its parts are incomplete or out of order")
        table = parts[0][2:] if len(parts) == 1 else b"".join([part[2:] for part in parts])
        if len(table) < _FEWEST_BYTES or len(table) % 2 != 1 or table[0] != _VERSION or table[1] > 1:
            raise ValueError("damaged tile table: it has another version, or is truncated")
        return cls(np.frombuffer(table, ">u2", offset=_FEWEST_BYTES).astype(np.int64), table[1], table[2])


def table_part(jpeg: bytes, marker: int, start: int, end: int) -> bytes | None:
    """Return the part of a tile table in the header segment from `start` to `end`, None if it is another segment."""
    if marker == APP11 and jpeg.startswith(_IDENTIFIER, start + 4):
        return jpeg[start + 4 + len(_IDENTIFIER) : end]
    return None
