"""JPEGs of every kind that can be tiled."""

from collections.abc import Callable
from functools import partial

from PIL import Image

from imagenet_mds.jpeg.markers import DHT, header_segments
from tests.support.jpegs import SAMPLINGS, jpeg, picture, sampled, with_tables_of_16_bits

ANY_SIZE = 10.0
"""A growth limit for images of a few blocks."""


def _thumbnail() -> bytes:
    return b"Exif\0\0" + jpeg(picture(16, 16)) + b"\xff\xd9\xff\xda\xff\xd0"


def _filled(data: bytes) -> bytes:
    """Insert fill bytes before every marker of the header, and before EOI."""
    pieces, at = [b"\xff\xd8"], 2
    for _, start, end in header_segments(data):
        pieces += [b"\xff" * (1 + start % 3), data[start:end]]
        at = end
    return b"".join([*pieces, data[at:-2], b"\xff\xff\xff", data[-2:]])


def _zeros_for_fill(data: bytes) -> bytes:
    """Fill up the last byte with zeros."""
    last = data[-3]
    ones = len(bin(last)) - len(bin(last).rstrip("1"))
    assert ones < 8
    return data[:-3] + bytes([last >> ones << ones]) + data[-2:]


def _other_table_numbers(data: bytes) -> bytes:
    """Rename tables 0 to 3, which extended sequential JPEGs allow."""
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
