"""What becomes of one image: kept as it is, turned into RGB JPEG, or left out with the reason."""

import contextlib
import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from imagenet_mds.jpeg.markers import FRAMES, header_segments
from imagenet_mds.vocabulary import CheckLevel, StoredForm
from imagenet_mds_convert.images.policy import Scaling, Stored
from imagenet_mds_convert.images.prepare import prepare
from imagenet_mds_convert.jpeg.walk import MAX_PIXELS, read_frame, walk_to_end
from imagenet_mds_convert.sources.base import Unusable
from tests.support.command import environment
from tests.support.drawing import encoded, noise
from tests.support.jpegs import lossless

CHECKS: tuple[CheckLevel, ...] = get_args(CheckLevel)
KINDS: list[dict[str, Any]] = [
    {},
    {"progressive": True},
    {"optimize": True},
    {"restart_marker_blocks": 1},
    {"progressive": True, "restart_marker_rows": 1},
    {"quality": 100, "subsampling": 0},
    {"comment": b"\xff\xd8\xff\xd9 a comment with markers in it"},
    {"exif": b"Exif\0\0" + b"\xff\xd9\xff\xda" * 20},
    {"icc_profile": b"\xff\xd9" * 40_000},
]
SEEN_OTHERWISE = [
    ("CMYK", "JPEG", "CMYK JPEG to RGB JPEG"),
    ("RGB", "PNG", "RGB PNG to RGB JPEG"),
    ("RGBA", "PNG", "RGBA PNG to RGB JPEG"),
    ("P", "PNG", "P PNG to RGB JPEG"),
    ("I;16", "PNG", "I;16 PNG to RGB JPEG, 16 bits scaled to 8"),
    ("1", "PNG", "1 PNG to RGB JPEG"),
    ("P", "GIF", "P GIF to RGB JPEG"),
    ("RGB", "BMP", "RGB BMP to RGB JPEG"),
    ("RGB", "WEBP", "RGB WEBP to RGB JPEG"),
    ("F", "TIFF", "F TIFF to RGB JPEG"),
    ("LAB", "TIFF", "LAB TIFF to RGB JPEG"),
]


@pytest.mark.parametrize("options", KINDS)
@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("check", CHECKS)
def test_a_jpeg_passes_through_untouched(options: dict[str, Any], mode: str, check: CheckLevel) -> None:
    data = encoded(noise().convert(mode), **options)
    assert prepare(data, check) == Stored(data)
    frame = read_frame(data)
    assert frame.components == len(mode)
    walk_to_end(data, frame)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("garbage", [b"\0", b"\n", b"\xff\xd8\xff", b"garbage" * 100])
def test_bytes_after_the_end_of_the_image_are_ignored(check: CheckLevel, garbage: bytes) -> None:
    data = encoded(noise()) + garbage
    assert prepare(data, check) == Stored(data)


def test_fill_bytes_before_a_marker_are_allowed() -> None:
    data = encoded(noise())
    filled = data[:2] + b"\xff\xff\xff" + data[2:-2] + b"\xff\xff" + data[-2:]
    frame = read_frame(filled)
    assert frame.components == 3
    walk_to_end(filled, frame)


@pytest.mark.parametrize("options", KINDS[:5])
@pytest.mark.parametrize("check", ["decode", "structure"])
def test_a_jpeg_cut_short_anywhere_is_unusable(options: dict[str, Any], check: CheckLevel) -> None:
    data = encoded(noise(), **options)
    for length in range(len(data)):
        with pytest.raises(Unusable, match=r"\w"):
            prepare(data[:length], check)


@given(st.binary(max_size=60))
def test_no_bytes_make_the_walk_crash(tail: bytes) -> None:
    with pytest.raises(Unusable, match="JPEG"):
        walk_to_end(b"\xff\xd8" + tail, read_frame(b"\xff\xd8" + tail))


@given(st.data())
def test_a_flipped_byte_makes_a_jpeg_unusable_or_changes_nothing_stored(data: st.DataObject) -> None:
    whole = encoded(noise(8, 8))
    place = data.draw(st.integers(2, len(whole) - 1))
    broken = whole[:place] + bytes([whole[place] ^ data.draw(st.integers(1, 255))]) + whole[place + 1 :]
    with contextlib.suppress(Unusable):
        stored = prepare(broken, "decode")
        assert stored.image == broken or stored.change


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty file"),
        (b"this is not an image\n", "no image that can be read (cannot identify image file)"),
        (b"\xff", "no image that can be read"),
        (b"\xff\xd8\xff\xd9", "broken JPEG: it ends without an image"),
        (b"\xff\xd8this is not one", "broken JPEG: no marker at byte 2"),
        (b"\xff\xd8\xff\xfe\0\2not one", "truncated JPEG: the file ends before the end-of-image marker"),
        (b"\xff\xd8\xff\xe0\x00\x01", "truncated JPEG: the file ends within a segment"),
        (b"\xff\xd8\xff\xc0\x00\x04\x08\x00", "broken JPEG: its frame header is cut short"),
        (encoded(noise(), "PNG")[:-30], "does not decode"),
        (encoded(noise(), "GIF")[:60], "no"),
    ],
)
def test_what_is_no_whole_image_is_left_out_with_the_reason(data: bytes, words: str) -> None:
    for check in CHECKS:
        with pytest.raises(Unusable) as caught:
            prepare(data, check)
        assert words in str(caught.value)
        assert " at 0x" not in str(caught.value)


def _frame(data: bytes, height: int, width: int, components: int | None = None) -> bytes:
    at = data.index(b"\xff\xc0") + 5
    now = data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]
    return now if components is None else now[: at + 4] + bytes([components]) + now[at + 5 :]


def test_a_frame_of_no_or_too_many_pixels_is_left_out_without_decoding_it() -> None:
    data = encoded(noise())
    headers_only: tuple[CheckLevel, ...] = ("structure", "none")
    for broken in (_frame(data, 0, 24), _frame(data, 16, 0), _frame(data, 16, 24, 0)):
        for check in headers_only:
            with pytest.raises(Unusable, match=r"broken JPEG: \d+ x \d+ pixels, \d components"):
                prepare(broken, check)
    for check in headers_only:
        with pytest.raises(Unusable, match="65535 x 65535 pixels, more than 134,217,728"):
            prepare(_frame(data, 65535, 65535), check)


def test_the_largest_image_kept_is_one_that_the_readers_open() -> None:
    assert Image.MAX_IMAGE_PIXELS is not None
    assert 2 * Image.MAX_IMAGE_PIXELS >= MAX_PIXELS


def _wide_png(width: int, height: int) -> bytes:
    """A black image of any size in a few kB, compressed row by row."""
    packer = zlib.compressobj(9)
    rows = b"".join(packer.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


_REFUSING = """
import pathlib, sys
from imagenet_mds_convert.images.prepare import Unusable, prepare

def peak_bytes():
    return int(pathlib.Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024

data = pathlib.Path(sys.argv[1]).read_bytes()
before = peak_bytes()
for check in sys.argv[2:]:
    try:
        prepare(data, check)
    except Unusable as reason:
        assert "pixels" in str(reason), reason
    else:
        raise AssertionError("not refused")
print(peak_bytes() - before)
"""


# The first is refused here, the second by Pillow too; they would take 144 and 900 MB.
@pytest.mark.parametrize("side", [12_000, 30_000])
def test_a_huge_image_in_a_small_file_is_refused_without_the_memory_for_it(tmp_path: Path, side: int) -> None:
    file = tmp_path / "bomb.png"
    file.write_bytes(_wide_png(side, side))
    assert file.stat().st_size < 200_000
    # In a subprocess, because Pillow allocates the memory, and tracemalloc does not see that.
    done = subprocess.run(
        [sys.executable, "-c", _REFUSING, file, *CHECKS], env=environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 30_000_000


def test_an_image_that_jpeg_cannot_hold_is_left_out() -> None:
    with pytest.raises(Unusable, match=r"^1 PNG of 70000 x 4 pixels cannot be RGB JPEG \("):
        prepare(_wide_png(70_000, 4), "decode")


@pytest.mark.parametrize(("mode", "kind", "change"), SEEN_OTHERWISE)
@pytest.mark.parametrize("check", CHECKS)
def test_what_readers_see_otherwise_becomes_rgb_jpeg(mode: str, kind: str, change: str, check: CheckLevel) -> None:
    picture = Image.new("RGB", (32, 24), (200, 60, 30))
    data = encoded(Image.new(mode, (32, 24)) if mode in ("LAB", "I;16") else picture.convert(mode), kind)
    stored = prepare(data, check)
    assert stored.change == change
    assert prepare(stored.image, "decode") == Stored(stored.image)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(stored.image)) as after:
        assert (after.mode, after.format, after.size) == ("RGB", "JPEG", (32, 24))
        difference = np.asarray(before.convert("RGB")).astype(int) - np.asarray(after)
        # On average, because images of few colours are dithered.
        assert np.abs(difference).mean() <= 3
    assert prepare(data, check) == stored


def test_orientation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(noise(24, 16), exif=exif)
    assert prepare(data, "decode") == Stored(data)
    turned = encoded(noise(24, 16), "PNG", exif=exif)
    with Image.open(io.BytesIO(prepare(turned, "decode").image)) as stored:
        assert stored.size == (24, 16)
        assert not stored.getexif()


def test_images_that_decoding_alone_finds_broken_are_found_by_decoding_alone() -> None:
    data = encoded(noise())
    no_quantization_tables = data.replace(b"\xff\xdb", b"\xff\xfe")
    assert prepare(no_quantization_tables, "structure") == Stored(no_quantization_tables)
    with pytest.raises(Unusable, match="does not decode"):
        prepare(no_quantization_tables, "decode")


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 2}])
def test_an_image_cut_short_with_an_end_put_behind_it_is_found_by_decode(options: dict[str, Any]) -> None:
    # libjpeg fills the missing part with gray and warns; Pillow discards the warning.
    data = encoded(noise(64, 64), **options)
    patched_end = data[: len(data) // 2] + b"\xff\xd9"
    with Image.open(io.BytesIO(data)) as image, Image.open(io.BytesIO(patched_end)) as cut:
        assert not np.array_equal(np.asarray(image), np.asarray(cut))
    for scaling in (Scaling(), Scaling(max_side=32)):
        with pytest.raises(Unusable, match=r"does not decode whole \(premature end of data segment\)"):
            prepare(patched_end, "decode", scaling)
    assert prepare(patched_end, "structure") == Stored(patched_end)


def test_surplus_bytes_leave_an_image_whole() -> None:
    data = encoded(noise(64, 64))
    for odd in (data[:-2] + bytes(300) + data[-2:], data + b"behind the end"):
        assert prepare(odd, "decode") == Stored(odd)


@pytest.mark.parametrize("form", ["file", "tiles", "raw"])
@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("scaling", [Scaling(max_side=16), Scaling(min_side=16), Scaling(max_side=4000)])
def test_a_lossless_jpeg_is_decoded_whole_and_never_scaled_while_decoding(
    check: CheckLevel, scaling: Scaling, form: StoredForm
) -> None:
    """A scaled decode of it writes past the buffer; thousands of them would crash the tests."""
    gray = np.asarray(noise(70, 60).convert("L"))
    stored = prepare(lossless(gray), check, scaling, form)
    assert stored.change == (None if form == "raw" else "L JPEG to RGB JPEG")
    whole = prepare(lossless(gray), check)
    assert whole.change == "L JPEG to RGB JPEG"
    with Image.open(io.BytesIO(whole.image)) as image:
        assert np.abs(np.asarray(image.convert("L")).astype(int) - gray).mean() < 2


@pytest.mark.parametrize("marker", sorted(FRAMES - {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}))
def test_what_says_it_is_a_jpeg_of_another_kind_is_left_out_or_decoded_by_pillow(marker: int) -> None:
    data = encoded(noise()).replace(b"\xff\xc0", bytes([0xFF, marker]))
    for check in CHECKS:
        for form in get_args(StoredForm):
            with contextlib.suppress(Unusable):
                assert prepare(data, check, Scaling(max_side=16), form).change is not None or form == "raw"


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("junk", [b"\0", b"junk", b"\xff\0\xff\xff", bytes(1000)])
def test_bytes_between_two_segments_leave_a_picture_whole(check: CheckLevel, junk: bytes) -> None:
    data = encoded(noise())
    places = [start for _, start, _ in header_segments(data)]
    for at in places[1:]:
        odd = data[:at] + junk + data[at:]
        assert prepare(odd, check) == Stored(odd)
        with Image.open(io.BytesIO(odd)) as one, Image.open(io.BytesIO(data)) as other:
            assert np.array_equal(np.asarray(one), np.asarray(other))
