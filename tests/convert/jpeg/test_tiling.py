"""Restart tiles: no pixel changes, and the source is restored byte for byte."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_mds.jpeg.markers import APP11, DHT, DRI
from imagenet_mds.jpeg.tiles import TileMap, cut
from imagenet_mds_convert.jpeg.baseline import NotTileable
from imagenet_mds_convert.jpeg.tiling import segment_mcus, tile_jpeg, untile_jpeg, whole_jpeg
from tests.support.jpeg_kinds import ANY_SIZE, SOURCES
from tests.support.jpegs import jpeg, markers, picture, seen_by_pillow, seen_by_simplejpeg

WITHOUT_A_NAME = ("4:1:0", "4:2:1")
"""Samplings that TurboJPEG, which simplejpeg asks, does not know."""


def _same(before: bytes, after: bytes, name: str = "") -> None:
    assert np.array_equal(seen_by_pillow(before), seen_by_pillow(after))
    if not any(unknown in name for unknown in WITHOUT_A_NAME):
        assert np.array_equal(seen_by_simplejpeg(before), seen_by_simplejpeg(after))


@pytest.mark.parametrize("name", SOURCES)
def test_tiling_changes_no_pixel_and_is_undone_byte_for_byte(name: str) -> None:
    source = SOURCES[name]()
    tiled = tile_jpeg(source, ANY_SIZE)
    _same(source, tiled, name)
    assert untile_jpeg(tiled) == source
    assert whole_jpeg(source) is None
    assert whole_jpeg(tiled) is None
    tile_map = TileMap.parse(tiled)
    assert tile_map is not None
    grid = tile_map.grid
    box = grid.width // 3, grid.height // 3, grid.width // 3 + 1, grid.height
    small, _, (left, top) = cut(tiled, tile_map, box)
    seen = seen_by_pillow(small)[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
    assert np.array_equal(seen, seen_by_pillow(source)[box[1] : box[3], box[0] : box[2]])


@pytest.mark.parametrize("name", SOURCES)
def test_tiling_adds_one_piece_to_the_header(name: str) -> None:
    source = SOURCES[name]()
    before, after = markers(source), markers(tile_jpeg(source, ANY_SIZE))
    assert after[: len(before) - 1] == before[:-1]
    assert [marker for marker in after[len(before) - 1 : -1] if marker != DHT] == [APP11, DRI]


def test_a_dc_category_that_the_image_lacked_is_added_behind_its_longest_code() -> None:
    # It darkens slowly: differences are small, while the values pass through several categories.
    ramp = 255 - 0.3 * np.arange(320)
    source = jpeg(Image.fromarray(np.broadcast_to(ramp, (70, 320)).astype(np.uint8)), optimize=True, quality=95)
    tiled = tile_jpeg(source, ANY_SIZE)
    assert markers(tiled).count(DHT) > markers(source).count(DHT)
    _same(source, tiled)
    assert untile_jpeg(tiled) == source


def test_a_tiled_jpeg_is_tiled_once() -> None:
    with pytest.raises(NotTileable, match="it is tiled"):
        tile_jpeg(tile_jpeg(SOURCES["4:2:0"](), ANY_SIZE), ANY_SIZE)


def test_what_would_grow_too_much_stays_as_it_is() -> None:
    coarse = SOURCES["coarse"]()
    assert 0.05 < len(tile_jpeg(coarse)) / len(coarse) - 1 < 0.25
    with pytest.raises(NotTileable, match=r"it would grow by more than 5%"):
        tile_jpeg(coarse, 0.05)
    with pytest.raises(NotTileable, match=r"it would grow by more than 25%"):
        tile_jpeg(jpeg(Image.new("RGB", (500, 375), (200, 30, 90))))
    photograph = jpeg(picture(500, 375), quality=93)
    assert len(photograph) < len(tile_jpeg(photograph)) < 1.01 * len(photograph)
    growth = len(tile_jpeg(coarse, ANY_SIZE)) / len(coarse) - 1
    assert tile_jpeg(coarse, growth + 1e-9)
    with pytest.raises(NotTileable, match="it would grow by more than"):
        tile_jpeg(coarse, growth - 1e-3)


def test_a_segment_longer_than_the_table_can_say_leaves_the_image_as_it_is() -> None:
    noise = np.random.Generator(np.random.PCG64(0)).integers(0, 256, (8, 8 * 281, 3), np.uint8)
    row = jpeg(Image.fromarray(noise[:, : 8 * 280]), quality=100, subsampling=0)
    assert len(tile_jpeg(row)) > len(row) > 70_000
    prime = jpeg(Image.fromarray(noise), quality=100, subsampling=0)
    with pytest.raises(NotTileable, match="a segment would be longer than 65,535 bytes"):
        tile_jpeg(prime)


@given(st.integers(1, 8192))
def test_a_segment_is_the_part_of_a_row_nearest_6_mcus(row: int) -> None:
    length = segment_mcus(row)
    parts = [part for part in range(3, row + 1) if row % part == 0]
    assert row % length == 0
    assert length == row if not parts else length in parts
    assert not parts or abs(length - 6) == min(abs(part - 6) for part in parts)


def test_the_shorter_of_two_equally_near_segments_is_taken() -> None:
    rows = {1: 1, 2: 2, 4: 4, 24: 6, 25: 5, 31: 31, 32: 4, 35: 5, 62: 31}
    assert {row: segment_mcus(row) for row in rows} == rows
