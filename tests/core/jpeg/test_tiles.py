"""The tile table and the cut: a cut has the pixels of the whole image, and a damaged table is refused."""

import struct
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_mds.jpeg.markers import APP0, APP11, APP14, COM, DRI, header_segments
from imagenet_mds.jpeg.tile_table import LONGEST_SEGMENT_BYTES, Table, table_part
from imagenet_mds.jpeg.tiles import TileMap, cut
from tests.support.jpegs import (
    SAMPLINGS,
    Pixels,
    jpeg,
    markers,
    picture,
    sampled,
    seen_by_pillow,
    seen_by_simplejpeg,
    with_table,
    with_tables_of_16_bits,
)

SCAN = b"\xff\xda\x00\x08\x01\x01\x00\x00\x3f\x00"


def _parsed(encoded: bytes) -> Table:
    data = b"\xff\xd8" + encoded + SCAN
    parts = [table_part(data, *segment) for segment in header_segments(data)]
    return Table.parse([part for part in parts if part is not None])


@given(st.lists(st.integers(0, LONGEST_SEGMENT_BYTES), min_size=1, max_size=50), st.integers(0, 1), st.integers(0, 255))
def test_a_table_survives_encoding_and_decoding(lengths: list[int], inner_fill: int, last_fill: int) -> None:
    table = _parsed(Table(np.array(lengths), inner_fill, last_fill).encode())
    assert (table.lengths_bytes.tolist(), table.inner_fill, table.last_fill) == (lengths, inner_fill, last_fill)


def test_the_layout_of_a_table_never_changes() -> None:
    encoded = Table(np.array([1, 258, 65_535]), 1, 127).encode()
    assert encoded.hex() == "ffeb0016" + b"MDSTILES\0".hex() + "0001" + "01017f" + "00010102ffff"


@pytest.mark.parametrize("segments", [32_759, 32_760, 100_000])
def test_a_long_table_continues_in_the_next_segment(segments: int) -> None:
    lengths = np.arange(segments) % 65_536
    encoded = Table(lengths, 0, 0).encode()
    assert encoded.count(b"MDSTILES\0") == -(-(2 * segments + 3) // 65_522)
    assert np.array_equal(_parsed(encoded).lengths_bytes, lengths)


def test_a_table_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="longer than 65,535 bytes"):
        Table(np.array([5, 65_536]), 1, 0).encode()
    with pytest.raises(ValueError, match="more than the table can hold"):
        Table(np.zeros(65_522 * 128, np.int64), 1, 0).encode()


def test_a_table_with_a_part_missing_or_out_of_order_is_refused() -> None:
    encoded = Table(np.arange(100_000) % 65_536, 0, 0).encode()
    parts = [encoded[at : at + 65_537] for at in range(0, len(encoded), 65_537)]
    for wrong in (parts[:-1], parts[1:], parts[::-1], [*parts, parts[-1]], [parts[0]]):
        with pytest.raises(ValueError, match="incomplete or out of order"):
            _parsed(b"".join(wrong))


def _tiled(kind: str) -> bytes:
    """Return an image with 2 to 5 columns and some rows of segments."""
    if kind == "grey":
        return with_table(jpeg(picture(157, 109).convert("L"), quality=90, restart_marker_blocks=5))
    if kind == "RGB":
        data = jpeg(picture(157, 109), quality=90, subsampling=0, keep_rgb=True, restart_marker_blocks=5)
        assert APP14 in markers(data)
        return with_table(data)
    if kind == "pillow 4:2:0":
        data = jpeg(
            picture(155, 109), quality=90, subsampling=2, restart_marker_blocks=5, comment=b"\xff\xd9", dpi=(7, 7)
        )
        return with_table(with_tables_of_16_bits(data))
    if kind == "pillow 4:2:2":
        return with_table(jpeg(picture(155, 109), quality=90, subsampling=1, restart_marker_blocks=2))
    return with_table(sampled(SAMPLINGS[kind], 6, 5, restart_mcus=2))


KINDS = ["grey", "RGB", "pillow 4:2:0", "pillow 4:2:2", *SAMPLINGS]


def _boxes(width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """Return boxes of all sizes; the first ones touch the corners."""
    random = np.random.Generator(np.random.PCG64(0))
    drawn = [(*sorted(random.choice(width + 1, 2, False)), *sorted(random.choice(height + 1, 2, False)))]
    while len(drawn) < count:
        drawn.append((*sorted(random.choice(width + 1, 2, False)), *sorted(random.choice(height + 1, 2, False))))
    corners = [(0, 0, 1, 1), (width - 1, height - 1, width, height), (0, 0, width, height)]
    return corners + [(int(left), int(top), int(right), int(bottom)) for left, right, top, bottom in drawn]


def _within(pixels: Pixels, box: tuple[int, int, int, int], eighths: int, corner: tuple[int, int] = (0, 0)) -> Pixels:
    """Return the pixels of a decode that overlap a box of the whole image."""
    left, top, right, bottom = box
    x, y = (side * eighths // 8 for side in corner)
    columns = slice(left * eighths // 8 - x, -(-right * eighths // 8) - x)
    return pixels[top * eighths // 8 - y : -(-bottom * eighths // 8) - y, columns]


@pytest.mark.parametrize("kind", KINDS)
def test_a_cut_has_the_pixels_of_the_whole_image_at_every_scale(kind: str) -> None:
    data = _tiled(kind)
    tile_map = TileMap.parse(data)
    assert tile_map is not None
    # TurboJPEG, which simplejpeg uses, has no name for the last two samplings.
    scales = [] if kind in ("4:1:0", "4:2:1") else range(1, 9)
    whole = {eighths: seen_by_simplejpeg(data, eighths) for eighths in scales}
    drafts = {draft: seen_by_pillow(data, draft) for draft in (1, 2, 4, 8)}
    height, width = drafts[1].shape[:2]
    assert (tile_map.grid.width, tile_map.grid.height) == (width, height)
    for box in _boxes(width, height, 25):
        small, size, corner = cut(data, tile_map, box)
        assert seen_by_pillow(small).shape[1::-1] == size
        assert all(side % 8 == 0 for side in corner)
        for eighths, pixels in whole.items():
            seen = _within(seen_by_simplejpeg(small, eighths), box, eighths, corner)
            assert seen.size
            assert np.array_equal(seen, _within(pixels, box, eighths)), (box, eighths)
        for draft, pixels in drafts.items():
            if draft <= min(seen_by_pillow(small).shape[:2]):  # nothing is scaled below one pixel
                seen = _within(seen_by_pillow(small, draft), box, 8 // draft, corner)
                assert np.array_equal(seen, _within(pixels, box, 8 // draft)), (box, draft)


@pytest.mark.parametrize("kind", ["grey", "RGB", "4:4:4"])
def test_without_subsampling_a_cut_is_the_segments_that_the_box_touches(kind: str) -> None:
    data = _tiled(kind)
    tile_map = TileMap.parse(data)
    assert tile_map is not None
    grid = tile_map.grid
    box = grid.tile_width, 8, 2 * grid.tile_width, 16
    small, _, corner = cut(data, tile_map, box)
    assert corner == (grid.tile_width, 8)
    assert seen_by_pillow(small).shape[:2] == (8, min(grid.width, 2 * grid.tile_width) - grid.tile_width)


def test_a_pixel_at_the_edge_of_a_segment_brings_its_neighbour_only_where_chroma_is_subsampled() -> None:
    for kind, reach in (("4:2:0", (1, 1)), ("4:2:2", (4, 0)), ("4:4:0", (0, 4)), ("4:1:0", (4, 4)), ("grey", (0, 0))):
        tile_map = TileMap.parse(_tiled(kind))
        assert tile_map is not None
        assert tile_map.grid.margin == reach


def test_a_cut_has_no_more_of_the_header_than_a_decoder_needs() -> None:
    data = _tiled("pillow 4:2:0")
    assert {APP0, APP11, COM, DRI} <= set(markers(data))
    tile_map = TileMap.parse(data)
    assert tile_map is not None
    small = cut(data, tile_map, (85, 20, 100, 50)).jpeg
    assert [marker for marker in markers(data) if marker not in (APP11, COM)] == markers(small)
    scan = small[header_segments(small)[-1][2] :]
    assert [scan[at + 1] for at in range(len(scan) - 1) if scan[at] == 0xFF and scan[at + 1]] == [
        0xD0,
        0xD1,
        0xD9,
    ]
    whole, _, corner = cut(data, tile_map, (0, 0, 155, 109))
    assert corner == (0, 0)
    assert whole[-2:] == b"\xff\xd9"
    assert len(data) - len(whole) == (4 + 9 + 2 + 3 + 2 * tile_map.ends.size) + (4 + 2)


def test_a_cut_contains_neither_fill_bytes_nor_bytes_after_the_image() -> None:
    data = _tiled("4:2:0")
    tile_map, longer = TileMap.parse(data), data[:-2] + b"\xff\xff\xff\xd9" + data
    assert tile_map is not None
    tile_map_of_longer = TileMap.parse(longer)
    assert tile_map_of_longer is not None
    for box in ((0, 0, 9, 9), (0, 0, tile_map.grid.width, tile_map.grid.height)):
        assert cut(longer, tile_map_of_longer, box) == cut(data, tile_map, box)


@pytest.mark.parametrize("box", [(0, 0, 0, 5), (5, 5, 4, 6), (-1, 0, 5, 5), (0, 0, 94, 5), (0, 0, 5, 78), (0, 3, 5, 3)])
def test_an_empty_box_or_one_outside_the_image_is_refused(box: tuple[int, int, int, int]) -> None:
    data = _tiled("4:2:0")
    tile_map = TileMap.parse(data)
    assert tile_map is not None
    with pytest.raises(ValueError, match="is not a crop box of an image of 93 x 77 pixels"):
        cut(data, tile_map, box)


def test_a_file_without_table_has_no_tiles() -> None:
    for data in (b"", b"\xff\xd8", b"GIF89a", jpeg(picture(9, 9)), jpeg(picture(40, 9), restart_marker_blocks=1)):
        assert TileMap.parse(data) is None


def _table_at(data: bytes) -> tuple[int, int]:
    return next((start, end) for marker, start, end in header_segments(data) if marker == APP11)


def test_a_table_with_a_changed_byte_is_refused_or_equivalent() -> None:
    data = _tiled("pillow 4:2:2")
    right = TileMap.parse(data)
    assert right is not None
    start, end = _table_at(data)
    fills = range(start + 16, start + 18)
    for at in range(start, end):
        for change in (0x01, 0x02, 0x10, 0x80, 0xFF):
            wrong = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
            try:
                parsed = TileMap.parse(wrong)
            except ValueError:
                continue
            # Without its identifier it is another segment, and the fills matter only for restoring the source.
            assert at < start + 13 if parsed is None else at in fills
            if parsed is not None:
                assert np.array_equal(parsed.ends, right.ends)


def test_swapped_lengths_are_refused() -> None:
    data = _tiled("pillow 4:2:2")
    start, end = _table_at(data)
    at, numbers = start + 18, (end - start - 18) // 2
    lengths = list(struct.unpack_from(f">{numbers}H", data, at))
    for place in range(numbers - 1):
        swapped = [*lengths[:place], lengths[place + 1], lengths[place], *lengths[place + 2 :]]
        if swapped != lengths:
            with pytest.raises(ValueError, match="a restart marker is not where the tile table says"):
                TileMap.parse(data[:at] + struct.pack(f">{numbers}H", *swapped) + data[end:])


def test_a_header_that_does_not_fit_the_table_is_refused() -> None:
    data = _tiled("pillow 4:2:2")
    frame = data.index(b"\xff\xc0")
    restart = data.index(b"\xff\xdd\x00\x04")
    for at, value in (
        (frame + 5, b"\x00\x00"),
        (frame + 7, b"\x00\x00"),
        (frame + 5, b"\xff\xff"),
        (frame + 7, b"\x00\x8f"),
        (frame + 9, b"\x02"),
        (frame + 11, b"\x00"),
        (frame + 11, b"\x22"),
        (frame + 1, b"\xfe"),
        (restart + 4, b"\x00\x00"),
        (restart + 4, b"\x00\x03"),
        (restart + 4, b"\x00\x05"),
        (restart + 1, b"\xfe"),
    ):
        with pytest.raises(ValueError, match="damaged"):
            TileMap.parse(data[:at] + value + data[at + len(value) :])
    with pytest.raises(ValueError, match="two frame headers"):
        TileMap.parse(data[:frame] + data[frame : frame + 19] + data[frame:])


def test_a_tiled_jpeg_truncated_in_its_scan_is_refused() -> None:
    data = _tiled("pillow 4:2:2")
    header_end = header_segments(data)[-1][2]
    for length in range(header_end):
        assert TileMap.parse(data[:length]) is None
    for length in range(header_end, len(data)):
        with pytest.raises(ValueError, match="its segments end after the end of the file"):
            TileMap.parse(data[:length])


def test_a_huge_size_in_the_header_allocates_nothing() -> None:
    data = _tiled("pillow 4:2:2")
    at = data.index(b"\xff\xc0") + 5
    with pytest.raises(ValueError, match="segments, not 8188 x "):
        TileMap.parse(data[:at] + struct.pack(">HH", 65_500, 65_504) + data[at + 4 :])


@given(st.binary(max_size=60))
def test_the_header_walk_never_crashes(tail: bytes) -> None:
    assert TileMap.parse(b"\xff\xd8" + tail) is None


def test_reading_tiles_imports_neither_a_compiler_nor_a_decoder() -> None:
    code = "import sys, imagenet_mds.jpeg.tiles; sys.exit(bool({'numba', 'simplejpeg', 'PIL'} & sys.modules.keys()))"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
