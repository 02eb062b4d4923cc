"""Restart tiles: no pixel changes, the source comes back byte for byte, what cannot be done right stays as it is."""

import contextlib
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import simplejpeg  # type: ignore[import-untyped]
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_mds.tiles import APP11, DHT, DRI, TileMap, cut, header_segments
from imagenet_mds_convert.baseline import Damaged, NotTileable, OtherKind
from imagenet_mds_convert.tiles import segment_mcus, tile_jpeg, untile_jpeg, whole_jpeg
from tests.jpegs import (
    SAMPLINGS,
    Pixels,
    jpeg,
    markers,
    picture,
    sampled,
    seen_by_pillow,
    seen_by_simplejpeg,
    with_tables_of_16_bits,
)

ANY_SIZE = 10.0
"""A growth limit for pictures of a few blocks."""

WITHOUT_A_NAME = ("4:1:0", "4:2:1")
"""Samplings that TurboJPEG, which simplejpeg asks, does not know."""


def _thumbnail() -> bytes:
    return b"Exif\0\0" + jpeg(picture(16, 16)) + b"\xff\xd9\xff\xda\xff\xd0"


def _filled(data: bytes) -> bytes:
    """With fill bytes before every marker of the header, and before EOI."""
    pieces, at = [b"\xff\xd8"], 2
    for _, start, end in header_segments(data):
        pieces += [b"\xff" * (1 + start % 3), data[start:end]]
        at = end
    return b"".join([*pieces, data[at:-2], b"\xff\xff\xff", data[-2:]])


def _zeros_for_fill(data: bytes) -> bytes:
    """The last byte filled up with zeros."""
    last = data[-3]
    ones = len(bin(last)) - len(bin(last).rstrip("1"))
    assert ones < 8
    return data[:-3] + bytes([last >> ones << ones]) + data[-2:]


def _other_table_numbers(data: bytes) -> bytes:
    """The tables 0 are called 3, which extended sequential JPEGs may."""
    pieces, at = [], 0
    for marker, start, end in header_segments(data):
        pieces.append(data[at:start])
        segment = data[start:end]
        if marker == DHT and segment[4] & 15 == 0:
            segment = segment[:4] + bytes([segment[4] | 3]) + segment[5:]
        elif marker == 0xC0:
            segment = b"\xff\xc1" + segment[2:]
        elif marker == 0xDA:
            segment = segment.replace(b"\x01\x00", b"\x01\x33", 1)
        pieces.append(segment)
        at = end
    return b"".join([*pieces, data[at:]])


def _before_sos(data: bytes, piece: bytes) -> bytes:
    at = header_segments(data)[-1][1]
    return data[:at] + piece + data[at:]


SOURCES: dict[str, Callable[[], bytes]] = {
    "4:4:4": lambda: jpeg(picture(150, 70), subsampling=0),
    "4:2:2": lambda: jpeg(picture(150, 70), subsampling=1),
    "4:2:0": lambda: jpeg(picture(150, 70), subsampling=2),
    "grey": lambda: jpeg(picture(150, 70).convert("L")),
    "grey with any factors": lambda: jpeg(picture(75, 70).convert("L")).replace(
        b"\x01\x01\x11\x00", b"\x01\x01\x42\x00"
    ),
    "finest": lambda: jpeg(picture(150, 70), quality=100),
    "coarse": lambda: jpeg(picture(150, 70), quality=5),
    "optimised": lambda: jpeg(picture(150, 70), optimize=True),
    "optimised, grey": lambda: jpeg(picture(150, 70).convert("L"), optimize=True),
    "flat": lambda: jpeg(Image.new("RGB", (150, 70), (200, 30, 90)), optimize=True),
    "RGB": lambda: jpeg(picture(150, 70), keep_rgb=True, subsampling=0),
    "16-bit DQT": lambda: with_tables_of_16_bits(jpeg(picture(150, 70))),
    "16-bit DQT, extended": lambda: with_tables_of_16_bits(jpeg(picture(150, 70))).replace(b"\xff\xc0", b"\xff\xc1"),
    "table 3": lambda: _other_table_numbers(jpeg(picture(150, 70))),
    "a restart behind each MCU": lambda: jpeg(picture(150, 70), restart_marker_blocks=1),
    "restarts as tiling has them": lambda: jpeg(picture(150, 70), restart_marker_blocks=5),
    "restarts across rows": lambda: jpeg(picture(150, 70), restart_marker_blocks=7, optimize=True),
    "restarts of 4 rows": lambda: jpeg(picture(150, 170), restart_marker_rows=4),
    "a restart that never comes": lambda: jpeg(picture(150, 70), restart_marker_blocks=5000),
    "DRI of none": lambda: _before_sos(jpeg(picture(150, 70)), b"\xff\xdd\0\4\0\0"),
    "DRI twice": lambda: _before_sos(jpeg(picture(150, 70), restart_marker_blocks=7), b"\xff\xdd\0\4\0\7"),
    "a thumbnail": lambda: jpeg(picture(150, 70), exif=_thumbnail()),
    "ICC, comment": lambda: jpeg(picture(150, 70), icc_profile=b"\xff\xd9" * 40_000, comment=b"\xff\xd8\xff\xda"),
    "APP11 of others": lambda: _before_sos(jpeg(picture(150, 70)), b"\xff\xeb\0\x06JP\0\1"),
    "fill bytes": lambda: _filled(jpeg(picture(150, 70))),
    "zeros for fill": lambda: _zeros_for_fill(jpeg(picture(150, 70, 2))),
    "garbage behind": lambda: jpeg(picture(150, 70)) + b"garbage\xff\xd0\xff",
    "a second image behind": lambda: 2 * jpeg(picture(150, 70)),
    "1 x 1": lambda: jpeg(picture(1, 1)),
    "1 x 1, grey": lambda: jpeg(picture(1, 1).convert("L")),
    "thin and high": lambda: jpeg(picture(1, 300)),
    "thin and wide": lambda: jpeg(picture(300, 1)),
    "31 MCUs a row": lambda: jpeg(picture(31 * 16, 20)),
    **{f"drawn {name}": partial(sampled, factors, 6, 4) for name, factors in SAMPLINGS.items()},
    **{f"drawn {name}, restarts": partial(sampled, factors, 6, 4, 5) for name, factors in SAMPLINGS.items()},
}


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
    small, (left, top) = cut(tiled, tile_map, box)
    seen = seen_by_pillow(small)[box[1] - top : box[3] - top, box[0] - left : box[2] - left]
    assert np.array_equal(seen, seen_by_pillow(source)[box[1] : box[3], box[0] : box[2]])


@pytest.mark.parametrize("name", SOURCES)
def test_tiling_adds_one_piece_to_the_header(name: str) -> None:
    source = SOURCES[name]()
    before, after = markers(source), markers(tile_jpeg(source, ANY_SIZE))
    assert after[: len(before) - 1] == before[:-1]
    assert [marker for marker in after[len(before) - 1 : -1] if marker != DHT] == [APP11, DRI]


def test_a_dc_category_that_the_picture_lacked_is_added_behind_its_longest_code() -> None:
    # It darkens so slowly that the differences are small, while the values themselves go through several categories.
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
    with pytest.raises(NotTileable, match=r"it would grow by more than 5%"):
        tile_jpeg(coarse)
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


def test_of_two_parts_as_near_the_shorter_one_is_taken() -> None:
    rows = {1: 1, 2: 2, 4: 4, 24: 6, 25: 5, 31: 31, 32: 4, 35: 5, 62: 31}
    assert {row: segment_mcus(row) for row in rows} == rows


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def _without_restart(data: bytes, number: int) -> bytes:
    scan = header_segments(data)[-1][2]
    at = data.index(bytes([0xFF, 0xD0 + number]), scan)
    return data[:at] + data[at + 2 :]


def _restarts_filled_in_different_ways() -> bytes:
    """One byte before a restart marker filled up with zeros."""
    data = jpeg(picture(150, 70), restart_marker_blocks=5)
    scan = header_segments(data)[-1][2]
    for found in re.finditer(rb"[\x01-\xfe]\xff[\xd0-\xd7]", data[scan:]):
        at = scan + found.start()
        if data[at] & 1:
            wrong = data[:at] + bytes([data[at] & 0xFE]) + data[at + 1 :]
            # If that bit was fill, the picture is the same.
            if whole_jpeg(wrong) is None and np.array_equal(seen_by_pillow(wrong), seen_by_pillow(data)):
                return wrong
    raise AssertionError("no byte before a restart marker is filled up")


def _with_dnl() -> bytes:
    data = jpeg(picture(150, 70))
    return _patched(data, b"\x08\x00\x46\x00\x96", b"\x08\x00\x00\x00\x96")[:-2] + b"\xff\xdc\x00\x04\x00\x46\xff\xd9"


def _in_two_scans() -> bytes:
    data = jpeg(picture(150, 70))
    sos = header_segments(data)[-1][1]
    return data[:-2] + data[sos:]


LEFT: dict[str, tuple[Callable[[], bytes], type[NotTileable], str]] = {
    "progressive": (lambda: jpeg(picture(150, 70), progressive=True), OtherKind, "progressive"),
    "lossless": (lambda: _patched(SOURCES["4:2:0"](), b"\xff\xc0", b"\xff\xc3"), OtherKind, "lossless"),
    "arithmetic": (lambda: _patched(SOURCES["4:2:0"](), b"\xff\xc0", b"\xff\xc9"), OtherKind, "arithmetic"),
    "CMYK": (lambda: jpeg(picture(150, 70).convert("CMYK")), OtherKind, "4 components"),
    "12 bits": (lambda: _patched(SOURCES["4:2:0"](), b"\x00\x11\x08", b"\x00\x11\x0c"), OtherKind, "12 bits"),
    "DNL": (_with_dnl, OtherKind, "150 x 0 pixels"),
    "two scans": (_in_two_scans, OtherKind, "several scans"),
    "a scan a component": (
        lambda: _patched(SOURCES["4:2:0"](), b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11", b"\xff\xda\0\x08\1\1\0"),
        OtherKind,
        "several scans",
    ),
    "no tables": (lambda: SOURCES["4:2:0"]().replace(b"\xff\xc4", b"\xff\xfe"), OtherKind, "lacks Huffman tables"),
    "no quantizers": (lambda: SOURCES["4:2:0"]().replace(b"\xff\xdb", b"\xff\xfe"), Damaged, "no quantization table 0"),
    "JFIF 2": (lambda: _patched(SOURCES["4:2:0"](), b"JFIF\0\1", b"JFIF\0\2"), OtherKind, "JFIF"),
    "fractions": (lambda: sampled((0x31, 0x21, 0x11), 4, 3), OtherKind, "sampled as no decoder"),
    "11 blocks": (lambda: sampled((0x33, 0x11, 0x11), 4, 3), OtherKind, "sampled as no decoder"),
    "a restart missing": (lambda: _without_restart(SOURCES["restarts across rows"](), 2), Damaged, "restart markers"),
    "the last one missing": (
        lambda: _without_restart(jpeg(picture(150, 17), restart_marker_blocks=10), 0),
        Damaged,
        "restart markers",
    ),
    "restarts out of order": (
        lambda: _patched(SOURCES["restarts across rows"](), b"\xff\xd1", b"\xff\xd2"),
        Damaged,
        "restart markers",
    ),
    "a restart unasked": (lambda: SOURCES["4:2:0"]()[:-2] + b"\xff\xd0\xff\xd9", Damaged, "restart markers"),
    "fill before a restart": (
        lambda: _patched(SOURCES["restarts across rows"](), b"\xff\xd1", b"\xff\xff\xd1"),
        OtherKind,
        "fill bytes before a restart",
    ),
    "no EOI": (lambda: SOURCES["4:2:0"]()[:-2], Damaged, "truncated"),
    "half an EOI": (lambda: SOURCES["4:2:0"]()[:-1], Damaged, "truncated"),
    "EOI too early": (lambda: SOURCES["4:2:0"]()[:-60] + b"\xff\xd9", Damaged, "end too early, in MCU"),
    "bytes behind": (lambda: SOURCES["4:2:0"]()[:-2] + b"\0\0\xff\xd9", OtherKind, "bytes behind its last block"),
    "bytes before a restart": (
        lambda: _patched(SOURCES["restarts across rows"](), b"\xff\xd1", b"\0\0\xff\xd1"),
        Damaged,
        "too many before a restart",
    ),
    "no JPEG": (lambda: b"GIF89a", Damaged, "no JPEG"),
    "nothing": (lambda: b"", Damaged, "no JPEG"),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_cannot_be_done_right_stays_as_it_is(name: str) -> None:
    make, kind, words = LEFT[name]
    data = make()
    with pytest.raises(kind, match=words):
        tile_jpeg(data, ANY_SIZE)
    if kind is Damaged:
        damage = whole_jpeg(data)
        assert damage is not None
        assert words in damage
    else:
        with pytest.raises(OtherKind, match=words):
            whole_jpeg(data)


def test_what_is_whole_but_could_not_be_restored_is_left_alone() -> None:
    data = _restarts_filled_in_different_ways()
    assert whole_jpeg(data) is None
    with pytest.raises(NotTileable, match="filled up in different ways"):
        tile_jpeg(data, ANY_SIZE)
    # A second code for a category that the picture uses with its first one only.
    twice = jpeg(picture(40, 40).convert("L"))
    at = twice.index(b"\xff\xc4\x00\x1f\x00") + 5
    assert twice[at + 16 : at + 28] == bytes(range(12))
    twice = twice[: at + 27] + b"\x02" + twice[at + 28 :]
    assert whole_jpeg(twice) is None
    with pytest.raises(NotTileable, match="two codes for a category"):
        tile_jpeg(twice, ANY_SIZE)


@pytest.mark.parametrize("name", ["4:2:0", "optimised, grey", "a restart behind each MCU", "fill bytes", "drawn 4:1:1"])
def test_a_jpeg_cut_short_anywhere_is_damaged(name: str) -> None:
    data = SOURCES[name]()
    end = len(data)
    assert data.endswith(b"\xff\xd9")
    scan = header_segments(data)[-1][2]
    for length in range(end):
        assert whole_jpeg(data[:length]), length
        with pytest.raises(Damaged):
            tile_jpeg(data[:length], ANY_SIZE)
    for length in range(scan, len(data.rstrip(b"\xff\xd9")) - 1):
        ended = data[:length] + b"\xff\xd9"
        try:
            assert whole_jpeg(ended), length
        except OtherKind:
            # A restart or a fill byte is left before it, or half a stuffed one.
            assert data[length - 1] == 0xFF


def test_a_tiled_jpeg_that_is_damaged_gives_no_source() -> None:
    tiled = tile_jpeg(SOURCES["optimised"](), ANY_SIZE)
    for length in range(0, len(tiled), 7):
        with pytest.raises(ValueError, match="JPEG"):
            untile_jpeg(tiled[:length])
    with pytest.raises(ValueError, match="this JPEG is not tiled"):
        untile_jpeg(SOURCES["optimised"]())


@pytest.mark.parametrize("size", [(65_500, 65_500), (65_500, 8), (8, 65_500), (20_000, 20_000)])
@pytest.mark.parametrize("restarts", [0, 1])
def test_a_huge_header_costs_nothing(size: tuple[int, int], restarts: int) -> None:
    data = jpeg(picture(24, 24), restart_marker_blocks=restarts)
    at = data.index(b"\xff\xc0") + 5
    data = data[:at] + struct.pack(">HH", *size) + data[at + 4 :]
    whole_jpeg(jpeg(picture(8, 8)))
    tracemalloc.start()
    try:
        began = time.process_time()
        with pytest.raises(NotTileable):
            tile_jpeg(data, ANY_SIZE)
        assert whole_jpeg(data)
        assert time.process_time() - began < 0.5
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def _mutated(data: bytes, draw: random.Random) -> bytes:
    """A file with 1 to 8 bytes changed, put in, taken out or repeated, half the time in its header."""
    mutated, scan = bytearray(data), header_segments(data)[-1][2]
    for _ in range(draw.choice((1, 1, 1, 2, 3, 8))):
        low, high = (2, scan) if draw.random() < 0.45 else (scan, len(mutated))
        at = min(draw.randrange(low, high), len(mutated) - 2)
        match draw.randrange(6):
            case 0:
                mutated[at] ^= 1 << draw.randrange(8)
            case 1:
                mutated[at] = draw.choice((0, 255, 0xD0, 0xD1, 0xD9, 0xC4, 0xC0, 0x11, 0x22, 0x41, draw.randrange(256)))
            case 2:
                del mutated[at : at + draw.randrange(1, 5)]
            case 3:
                mutated[at:at] = draw.randbytes(draw.randrange(1, 5))
            case 4:
                source = draw.randrange(low, high)
                mutated[at:at] = mutated[source : source + draw.randrange(1, 40)]
            case 5:
                if draw.random() < 0.3:
                    del mutated[at:]
        if len(mutated) < scan + 30:
            break
    return bytes(mutated)


def _seen_strictly(data: bytes) -> Pixels | None:
    """None where libjpeg-turbo so much as warns."""
    try:
        pixels: Pixels = simplejpeg.decode_jpeg(data)
    except ValueError:
        return None
    return pixels


def test_fuzzed_files_show_the_same_pixels_or_stay_as_they_are() -> None:
    draw = random.Random(5)
    names = ["4:4:4", "4:2:0", "grey", "optimised", "finest", "a restart behind each MCU", "restarts across rows"]
    sources = [SOURCES[name]() for name in names] + [jpeg(picture(33, 17), subsampling=1), jpeg(picture(60, 20))]
    tiled_ones = refused = 0
    for _ in range(3000):
        data = _mutated(draw.choice(sources), draw)
        try:
            tiled = tile_jpeg(data, ANY_SIZE)
        except NotTileable as reason:
            refused += isinstance(reason, Damaged)
            continue
        tiled_ones += 1
        assert whole_jpeg(data) is None
        assert untile_jpeg(tiled) == data
        seen = _seen_strictly(data)
        assert seen is not None
        assert np.array_equal(simplejpeg.decode_jpeg(tiled), seen)
        tile_map = TileMap.parse(tiled)
        assert tile_map is not None
        left, top = draw.randrange(tile_map.grid.width), draw.randrange(tile_map.grid.height)
        box = left, top, draw.randint(left + 1, tile_map.grid.width), draw.randint(top + 1, tile_map.grid.height)
        small, corner = cut(tiled, tile_map, box)
        rows, columns = slice(top - corner[1], box[3] - corner[1]), slice(left - corner[0], box[2] - corner[0])
        assert np.array_equal(simplejpeg.decode_jpeg(small)[rows, columns], seen[top : box[3], left : box[2]])
        for read in (TileMap.parse, untile_jpeg):
            with contextlib.suppress(ValueError):
                read(_mutated(tiled, draw))
    assert min(tiled_ones, refused) > 500
