"""Tiled JPEGs: cutting the part of a file that covers a crop, without decoding anything.

A JPEG may contain restart markers, at which its Huffman stream starts again. If they divide every row of MCUs (minimum
coded units: the blocks of all colour components at one position) into equal segments, then the segments that cover a
crop box, with a header of their own, are a small JPEG that any decoder reads. `imagenet_mds_convert.jpeg.tiling` makes
such files. This module has what readers need: the map of the segments, from `tile_table`, and the cut.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from imagenet_mds.jpeg.markers import APP0, APP14, DHT, DQT, DRI, EOI, FRAMES, SOS, Array, header_segments
from imagenet_mds.jpeg.tile_table import Table, table_part

_DECODERS = frozenset({SOS, DQT, DHT, DRI, APP0, APP14})  # APP0 and APP14 decide the colour space


@dataclass(frozen=True)
class Grid:
    """The segments of an image.

    Attributes:
        width, height: size of the image in pixels.
        tile_width, tile_height: size of a segment in pixels; those at the right and lower edge are smaller.
        rows, columns: number of segments.
        margin: how many pixels to the sides, and above and below, decoding a pixel depends on.
    """

    width: int
    height: int
    tile_width: int
    tile_height: int
    rows: int
    columns: int
    margin: tuple[int, int]


@dataclass(frozen=True)
class TileMap:
    """Where the segments of a tiled JPEG are.

    Attributes:
        grid: the layout of the segments.
        ends: (rows, columns), offset in the file of the end of each segment, with the two bytes of the marker after it.
        sizes_bytes: (rows, columns), size of each segment with these two bytes.
        before, after: what a decoder needs of the header, before and after the height and width of the image.
    """

    grid: Grid
    ends: Array
    sizes_bytes: Array
    before: bytes
    after: bytes

    @classmethod
    def parse(cls, jpeg: bytes) -> "TileMap | None":
        """Read the tile table of a JPEG. Return None if it has none or its header is broken; its decoder reports that.

        The table is compared with all restart markers in the file, so that a wrong table is never used.

        Raises:
            ValueError: the table is damaged, or does not fit the JPEG.
        """
        try:
            segments = header_segments(jpeg)
        except ValueError:
            return None
        parts, pieces, frame, interval = [], [b"\xff\xd8"], b"", b""
        for marker, start, end in segments:
            if marker in _DECODERS:
                pieces.append(jpeg[start:end])
                if marker == DRI:
                    interval = jpeg[start + 4 : end]
            elif marker in FRAMES:
                if frame:
                    raise ValueError("broken JPEG: two frame headers")
                frame = jpeg[start + 4 : end]
                before = b"".join([*pieces, jpeg[start : start + 5]])
                pieces = [jpeg[start + 9 : end]]
            elif part := table_part(jpeg, marker, start, end):
                parts.append(part)
        if not parts:
            return None
        table = Table.parse(parts)
        grid = _grid(frame, interval)
        if len(table.lengths_bytes) != grid.rows * grid.columns:
            raise ValueError(
                f"damaged tile table: {len(table.lengths_bytes)} segments, not {grid.rows} x {grid.columns}"
            )
        sizes_bytes = table.lengths_bytes + 2
        ends = sizes_bytes.cumsum() + segments[-1][2]
        _compare_markers(jpeg, ends)
        shape = grid.rows, grid.columns
        return cls(grid, ends.reshape(shape), sizes_bytes.reshape(shape), before, b"".join(pieces))


def _compare_markers(jpeg: bytes, ends: Array) -> None:
    """Check that a restart marker with the right number follows every segment but the last.

    The restart interval allows for no others.

    Raises:
        ValueError: a marker is missing, or the segments end after the file.
    """
    if ends[-1] > len(jpeg):
        raise ValueError("damaged tiled JPEG: its segments end after the end of the file")
    data = np.frombuffer(jpeg, np.uint8)
    second = ends - 1
    numbers = _restart_numbers(len(ends) - 1)
    # Comparing bytes is ten times as fast as comparing small arrays.
    if data[second - 1].tobytes() != b"\xff" * len(ends) or data[second[:-1]].tobytes() != numbers.tobytes():
        raise ValueError("damaged tiled JPEG: a restart marker is not where the tile table says")


@lru_cache(maxsize=1024)
def _grid(frame: bytes, interval: bytes) -> Grid:
    """Compute the grid from the content of the frame header and of the DRI segment.

    Raises:
        ValueError: one of them is damaged.
    """
    if len(frame) < 9 or len(frame) != 6 + 3 * frame[5] or len(interval) != 2:
        raise ValueError("damaged tiled JPEG: its frame header or restart interval is missing or truncated")
    height, width = struct.unpack_from(">HH", frame, 1)
    factors = [(value >> 4, value & 15) for value in frame[7::3]]
    if not height or not width or not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise ValueError("damaged tiled JPEG: its frame header is invalid")
    if len(factors) == 1:
        factors = [(1, 1)]  # a single component is not interleaved, and its MCU is one block (T.81, A.2.2)
    most_h, most_v = max(h for h, _ in factors), max(v for _, v in factors)
    row_mcus, rows, mcus = -(-width // (8 * most_h)), -(-height // (8 * most_v)), int.from_bytes(interval, "big")
    if not mcus or row_mcus % mcus:
        raise ValueError("damaged tiled JPEG: its restart interval does not divide a row")
    return Grid(
        width, height, 8 * most_h * mcus, 8 * most_v, rows, row_mcus // mcus, _margin(factors, (most_h, most_v))
    )


def _margin(factors: Sequence[tuple[int, int]], most: tuple[int, int]) -> tuple[int, int]:
    """Return how many pixels to the sides, and above and below, libjpeg uses to decode a pixel.

    Upsampling uses the next chroma sample, which the next pixel contains. If chroma is coarser by the same factor in
    both directions, that is all, since a scaled decode then needs no upsampling. Otherwise (4:2:2) it does, and the
    next pixel of a decode to a quarter is four pixels of the whole image. A decode to an eighth interpolates nothing.
    """
    reach = 1 if all(most[0] * v == most[1] * h for h, v in factors) else 4
    return (
        reach if any(h != most[0] for h, _ in factors) else 0,
        reach if any(v != most[1] for _, v in factors) else 0,
    )


@lru_cache(maxsize=1024)
def _restart_numbers(count: int) -> Array:
    """Return the second bytes of `count` restart markers, starting with RST0, as a read-only array (count,)."""
    numbers = (0xD0 + (np.arange(count) & 7)).astype(np.uint8)
    numbers.flags.writeable = False
    return numbers


class Cut(NamedTuple):
    """A part of a tiled JPEG: a JPEG, its width and height, and where its upper left corner is in the whole image, left
    and top, in pixels."""

    jpeg: bytes
    size: tuple[int, int]
    corner: tuple[int, int]


def cut(jpeg: bytes, tile_map: TileMap, box: tuple[int, int, int, int]) -> Cut:
    """Cut the smallest JPEG of whole segments that covers a box out of a tiled JPEG.

    Decoded by libjpeg at any of its scales, it has the same pixels within the box as the whole JPEG, and its upper left
    corner is on a whole pixel.

    Args:
        jpeg: the tiled JPEG.
        tile_map: the result of `TileMap.parse` for it.
        box: left, top, right and bottom in pixels; right and bottom are exclusive.

    Raises:
        ValueError: the box is empty or not within the image.
    """
    left, top, right, bottom = box
    grid = tile_map.grid
    if not (0 <= left < right <= grid.width and 0 <= top < bottom <= grid.height):
        raise ValueError(f"{box} is not a crop box of an image of {grid.width} x {grid.height} pixels")
    aside, above = grid.margin
    first_column, first_row = max(left - aside, 0) // grid.tile_width, max(top - above, 0) // grid.tile_height
    last_column = (min(right + aside, grid.width) - 1) // grid.tile_width
    last_row = (min(bottom + above, grid.height) - 1) // grid.tile_height
    left, top = first_column * grid.tile_width, first_row * grid.tile_height
    width = min((last_column + 1) * grid.tile_width, grid.width) - left
    height = min((last_row + 1) * grid.tile_height, grid.height) - top
    rows = slice(first_row, last_row + 1)
    starts = tile_map.ends[rows, first_column] - tile_map.sizes_bytes[rows, first_column]
    ends = tile_map.ends[rows, last_column]
    header = b"".join([tile_map.before, struct.pack(">HH", height, width), tile_map.after])
    small = bytearray().join(
        [header, *[jpeg[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]]
    )
    # Each copied segment includes the two bytes after it: a restart marker or, after the last segment of the scan,
    # whatever ends the scan. Renumber these markers RST0, RST1 and so on, and turn the last one into EOI.
    markers = tile_map.sizes_bytes[rows, first_column : last_column + 1].cumsum() + (len(header) - 1)
    np.frombuffer(small, np.uint8)[markers] = _restart_numbers(len(markers))
    small[-1] = EOI
    return Cut(bytes(small), (width, height), (left, top))
