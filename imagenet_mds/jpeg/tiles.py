"""Tiled JPEGs: a crop of the picture is cut out of the file without decoding anything.

A JPEG may carry restart markers, at which its Huffman stream starts afresh. Where every row of MCUs (minimum coded
units: the blocks of one place in all colour components) is divided into equal segments by them, the segments that cover
a crop box are, behind a header of their own, a small JPEG that any decoder reads. `imagenet_mds_convert.jpeg.tiling`
makes such files; here is what readers need: where the segments lie (`tile_table`), and the cut.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from imagenet_mds.jpeg.markers import APP0, APP14, DHT, DQT, DRI, EOI, FRAMES, SOS, Array, header_segments
from imagenet_mds.jpeg.tile_table import Table, table_part

_DECODERS = frozenset({SOS, DQT, DHT, DRI, APP0, APP14})  # of APPn, these two decide the colour space


@dataclass(frozen=True)
class Grid:
    """A picture's `width` and `height` in pixels, those of a segment (at the right and lower edge they are smaller),
    how many rows and columns of segments there are, and how many pixels to the sides, and above and below, decoding
    looks past a pixel."""

    width: int
    height: int
    tile_width: int
    tile_height: int
    rows: int
    columns: int
    margin: tuple[int, int]


@dataclass(frozen=True)
class TileMap:
    """Where the segments of a tiled JPEG lie.

    `ends` (rows, columns): the byte in the file behind each segment and the two bytes of the marker that ends it;
    `sizes_bytes` (rows, columns): each segment with these two; `before` and `after`: what a decoder needs of the
    header, before and behind the picture's height and width.
    """

    grid: Grid
    ends: Array
    sizes_bytes: Array
    before: bytes
    after: bytes

    @classmethod
    def parse(cls, jpeg: bytes) -> "TileMap | None":
        """Read the tile table of a JPEG; None where it has none, or a broken header, of which its decoder will tell.

        All the restart markers are looked at in their places, so that a table that does not fit is never believed.

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
    """There are as many restart markers as segments less one, so that if each has its place, no other place has one."""
    if ends[-1] > len(jpeg):
        raise ValueError("damaged tiled JPEG: its segments end behind the end of the file")
    data = np.frombuffer(jpeg, np.uint8)
    second = ends - 1
    numbers = _restart_numbers(len(ends) - 1)
    # As bytes, for which comparing is ten times as fast as for small arrays.
    if data[second - 1].tobytes() != b"\xff" * len(ends) or data[second[:-1]].tobytes() != numbers.tobytes():
        raise ValueError("damaged tiled JPEG: a restart marker is not where the tile table says")


@lru_cache(maxsize=1024)
def _grid(frame: bytes, interval: bytes) -> Grid:
    """The grid of a frame header's content and a DRI's."""
    if len(frame) < 9 or len(frame) != 6 + 3 * frame[5] or len(interval) != 2:
        raise ValueError("damaged tiled JPEG: its frame header or restart interval is not there, or cut short")
    height, width = struct.unpack_from(">HH", frame, 1)
    factors = [(value >> 4, value & 15) for value in frame[7::3]]
    if not height or not width or not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise ValueError("damaged tiled JPEG: its frame header cannot be")
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
    """How many pixels libjpeg looks past one, to the sides and up and down.

    Upsampling takes the next chroma sample into account, which the next pixel holds. That is all where chroma is
    coarser by the same factor in both directions, since in a smaller decode it then needs no upsampling. Where it is
    not (4:2:2), it does, and the next pixel of a decode to a quarter is four of the whole picture; a decode to an
    eighth interpolates nothing.
    """
    reach = 1 if all(most[0] * v == most[1] * h for h, v in factors) else 4
    return (
        reach if any(h != most[0] for h, _ in factors) else 0,
        reach if any(v != most[1] for _, v in factors) else 0,
    )


@lru_cache(maxsize=1024)
def _restart_numbers(count: int) -> Array:
    """The second bytes of `count` restart markers, from RST0."""
    numbers = (0xD0 + (np.arange(count) & 7)).astype(np.uint8)
    numbers.flags.writeable = False
    return numbers


def cut(jpeg: bytes, tile_map: TileMap, box: tuple[int, int, int, int]) -> tuple[bytes, tuple[int, int]]:
    """Cut the smallest JPEG of whole segments that covers a box out of a tiled one.

    Decoded by libjpeg, at any of its scales, it has within the box the pixels that the whole JPEG has there, and its
    upper left corner lies on a whole pixel at each of them.

    Args:
        jpeg: the tiled JPEG.
        tile_map: what `TileMap.parse` gave for it.
        box: left, top, right and bottom in pixels, right and bottom just outside.

    Returns:
        The JPEG, and the left and top of its upper left corner in the whole picture, in pixels.

    Raises:
        ValueError: the box has no pixel, or one outside the picture.
    """
    left, top, right, bottom = box
    grid = tile_map.grid
    if not (0 <= left < right <= grid.width and 0 <= top < bottom <= grid.height):
        raise ValueError(f"no crop box of a picture of {grid.width} x {grid.height} pixels: {box}")
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
    # Each segment has come with the two bytes behind it: its restart marker or, for the last one of all, the marker
    # that ends the scan or a fill byte before it. They become RST0, RST1 and so on, and the last of them EOI.
    markers = tile_map.sizes_bytes[rows, first_column : last_column + 1].cumsum() + (len(header) - 1)
    np.frombuffer(small, np.uint8)[markers] = _restart_numbers(len(markers))
    small[-1] = EOI
    return bytes(small), (left, top)
