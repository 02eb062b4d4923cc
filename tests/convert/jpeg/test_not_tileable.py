"""Files that cannot be tiled exactly stay unchanged: other kinds, all sorts of damage, random mutations."""

import contextlib
import random
import re
import struct
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.jpeg.markers import header_segments
from imagenet_mds.jpeg.tiles import TileMap, cut
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.images import prepare as prepare_module
from imagenet_mds_convert.images.policy import Stored, compiled_check_pays
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.jpeg.baseline import Damaged, NotTileable, OtherKind
from imagenet_mds_convert.jpeg.tiling import tile_jpeg, untile_jpeg, whole_jpeg
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.base import Unusable
from tests.support.jpeg_kinds import ANY_SIZE, SOURCES
from tests.support.jpegs import Pixels, jpeg, picture, sampled, seen_by_pillow


def _patched(data: bytes, old: bytes, new: bytes) -> bytes:
    assert old in data
    return data.replace(old, new, 1)


def _without_restart(data: bytes, number: int) -> bytes:
    scan = header_segments(data)[-1][2]
    at = data.index(bytes([0xFF, 0xD0 + number]), scan)
    return data[:at] + data[at + 2 :]


def _restarts_filled_in_different_ways() -> bytes:
    """Fill up one byte before a restart marker with zeros."""
    data = jpeg(picture(150, 70), restart_marker_blocks=5)
    scan = header_segments(data)[-1][2]
    for found in re.finditer(rb"[\x01-\xfe]\xff[\xd0-\xd7]", data[scan:]):
        at = scan + found.start()
        if data[at] & 1:
            wrong = data[:at] + bytes([data[at] & 0xFE]) + data[at + 1 :]
            # If that bit was fill, the image is unchanged.
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
def test_files_that_cannot_be_tiled_exactly_stay_unchanged(name: str) -> None:
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
    # A second code for a category that the image uses only with its first one.
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
            # The cut leaves a restart marker, a fill byte or half a stuffed byte before it.
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
    """A file with 1 to 8 random changes, insertions, deletions or repetitions, half the time in its header."""
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


def test_what_decode_finds_does_not_depend_on_what_was_asked_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The order may be the compiled walk, the decoder, or the marker walk and then the decoder."""

    def found(data: bytes, compiled_check: bool) -> Stored | str:
        try:
            return prepare(data, "decode", compiled_check=compiled_check)
        except Unusable as reason:
            return str(reason)

    draw = random.Random(7)
    files = [make() for make in SOURCES.values()] + [make() for make, _, _ in LEFT.values()]
    files += [_mutated(draw.choice(files[: len(SOURCES)]), draw) for _ in range(1000)]
    decoded = [found(data, compiled_check=False) for data in files]
    assert [found(data, compiled_check=True) for data in files] == decoded
    monkeypatch.setattr(prepare_module, "_decodes_without_complaint", lambda data: False)
    assert [found(data, compiled_check=False) for data in files] == decoded
    assert min(sum(isinstance(one, kind) for one in decoded) for kind in (str, Stored)) > 200


@pytest.mark.parametrize("compiled_check", [True, False])
def test_the_decoder_is_asked_about_what_the_compiled_walk_cannot_judge(
    monkeypatch: pytest.MonkeyPatch, compiled_check: bool
) -> None:
    decoded: list[bytes] = []

    def decode(data: bytes) -> bool:
        decoded.append(data)
        return True

    monkeypatch.setattr(prepare_module, "_decodes_without_complaint", decode)
    whole, progressive = SOURCES["4:2:0"](), jpeg(picture(150, 70), progressive=True)
    for data in (whole, progressive, whole):
        prepare(data, "decode", compiled_check=compiled_check)
    assert decoded == ([progressive] if compiled_check else [whole, progressive, whole])


def test_the_compiled_walk_is_for_conversions_that_gain_from_it(tree: Path, tmp_path: Path) -> None:
    assert [compiled_check_pays(images) for images in (1, 99_999, 100_000, 1_281_167)] == [False, False, True, True]
    conversion = SplitConversion.plan_for(open_source(str(tree)), "val", LocalStorage(tmp_path), Policy())
    assert not conversion.task(0).compiled_check


def _seen_strictly(data: bytes) -> Pixels | None:
    """The decoded pixels, None if libjpeg-turbo fails or warns."""
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
        small, _, corner = cut(tiled, tile_map, box)
        rows, columns = slice(top - corner[1], box[3] - corner[1]), slice(left - corner[0], box[2] - corner[0])
        assert np.array_equal(simplejpeg.decode_jpeg(small)[rows, columns], seen[top : box[3], left : box[2]])
        for read in (TileMap.parse, untile_jpeg):
            with contextlib.suppress(ValueError):
                read(_mutated(tiled, draw))
    assert min(tiled_ones, refused) > 500
