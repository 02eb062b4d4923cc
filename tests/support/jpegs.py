"""JPEGs of every kind, put together from what Pillow writes, and what their decoders see."""

import io
import re
from typing import Any, TypeAlias

import numpy as np
import simplejpeg
from PIL import Image

from imagenet_mds.jpeg.markers import DQT, SOS, header_segments
from imagenet_mds.jpeg.tile_table import Table

Pixels: TypeAlias = np.ndarray[Any, np.dtype[np.uint8]]

SAMPLINGS = {
    "4:4:4": (0x11, 0x11, 0x11),
    "4:2:2": (0x21, 0x11, 0x11),
    "4:2:0": (0x22, 0x11, 0x11),
    "4:1:1": (0x41, 0x11, 0x11),
    "4:4:0": (0x12, 0x11, 0x11),
    "4:1:0": (0x42, 0x11, 0x11),
    "4:2:1": (0x22, 0x21, 0x11),
}
"""The sampling factors of the three components."""


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Waves with some noise: every block another one, none flat."""
    random = np.random.Generator(np.random.PCG64(seed))
    y, x = np.mgrid[:height, :width]
    planes = [
        128 + 100 * np.sin(x / 7 + seed) + 0 * y,
        128 + 90 * np.cos(y / 5 + x / 11),
        (2 * x) % 256 * 0.7 + y % 50,
    ]
    return Image.fromarray((np.stack(planes, -1) + random.normal(0, 12, (height, width, 3))).clip(0, 255).astype("u1"))


def jpeg(image: Image.Image, **options: Any) -> bytes:
    """A picture as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **options)
    return buffer.getvalue()


def sampled(factors: tuple[int, ...], columns: int, rows: int, restart_mcus: int = 0) -> bytes:
    """A JPEG of three components with any sampling factors, `columns` x `rows` MCUs less 3 pixels each way.

    Its blocks are a grey picture's, in the order in which they come there: a scan of one component that is said to be
    of three with the same tables.
    """
    blocks = sum((factor >> 4) * (factor & 15) for factor in factors)
    random = np.random.Generator(np.random.PCG64(blocks))
    # Little contrast, because the DC differences of a few blocks now add up in another order.
    grey = Image.fromarray(random.integers(110, 146, (8 * rows, 8 * columns * blocks), np.uint8))
    data = jpeg(grey, quality=90, restart_marker_blocks=restart_mcus * blocks)
    width = columns * 8 * max(factor >> 4 for factor in factors) - 3
    height = rows * 8 * max(factor & 15 for factor in factors) - 3
    frame = b"\xff\xc0\x00\x11\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x03"
    frame += b"".join(bytes([number, factor, 0]) for number, factor in enumerate(factors, 1))
    old = data.index(b"\xff\xc0")
    data = data[:old] + frame + data[old + 13 :]
    for old_piece, piece in (
        (
            b"\xff\xdd\x00\x04" + (restart_mcus * blocks).to_bytes(2, "big"),
            b"\xff\xdd\x00\x04\x00" + bytes([restart_mcus]),
        ),
        (b"\xff\xda\x00\x08\x01\x01\x00", b"\xff\xda\x00\x0c\x03\x01\x00\x02\x00\x03\x00"),
    ):
        data = data.replace(old_piece, piece)
    return data


def with_tables_of_16_bits(data: bytes) -> bytes:
    """The same JPEG, its quantization tables in 16 bits."""
    pieces, at = [], 0
    for marker, start, end in header_segments(data):
        if marker == DQT:
            assert end - start == 4 + 65
            values = b"".join(bytes([0, value]) for value in data[start + 5 : end])
            pieces += [data[at:start], b"\xff\xdb\x00\x83", bytes([0x10 | data[start + 4]]), values]
            at = end
    return b"".join([*pieces, data[at:]])


def with_table(data: bytes) -> bytes:
    """A JPEG with restart markers, and the table of where they are."""
    (_, sos, at), *_ = (segment for segment in header_segments(data) if segment[0] == SOS)
    markers = [found.start() for found in re.finditer(rb"\xff[\xd0-\xd7\xd9]", data[at:])]
    lengths = np.diff(np.array([-2, *markers])) - 2
    return data[:sos] + Table(lengths, 1, 0).encode() + data[sos:]


def seen_by_pillow(data: bytes, draft: int = 1) -> Pixels:
    """The pixels in Pillow, one of its drafts' if wanted."""
    with Image.open(io.BytesIO(data)) as image:
        small = -(-image.width // draft), -(-image.height // draft)
        if draft > 1:
            image.draft(None, (max(1, image.width // draft), max(1, image.height // draft)))
            assert image.size == small
        return np.array(image)


def seen_by_simplejpeg(data: bytes, eighths: int = 8) -> Pixels:
    """The pixels in libjpeg-turbo at a scale, every warning an error; grey pictures have one component."""
    height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
    small = -(-int(width) * eighths // 8), -(-int(height) * eighths // 8)
    seen: Pixels = simplejpeg.decode_jpeg(
        data, "GRAY" if colours == "Gray" else "RGB", min_width=small[0], min_height=small[1]
    )
    assert seen.shape[:2] == small[::-1]
    return seen


def markers(data: bytes) -> list[int]:
    """The markers of its header, in order."""
    return [marker for marker, _, _ in header_segments(data)]


def lossless(gray: Pixels) -> bytes:
    """A lossless JPEG (SOF3) of gray pixels, each predicted by its neighbour on the left, with codes of 5 bits."""
    height, width = gray.shape
    values = gray.astype(int)
    predicted = np.roll(values, 1, axis=1)
    predicted[1:, 0] = values[:-1, 0]
    predicted[0, 0] = 128
    bits = []
    for difference in (values - predicted).ravel().tolist():
        category = abs(difference).bit_length()
        bits.append(f"{category:05b}")
        if category:
            bits.append(f"{difference if difference > 0 else difference + (1 << category) - 1:0{category}b}")
    joined = "".join(bits)
    joined += "1" * (-len(joined) % 8)
    entropy = int(joined, 2).to_bytes(len(joined) // 8, "big").replace(b"\xff", b"\xff\0")
    categories = 10
    table = bytes([0, 0, 0, 0, 0, categories, *11 * [0], *range(categories)])
    frame = b"\x08" + height.to_bytes(2, "big") + width.to_bytes(2, "big") + b"\x01\x01\x11\0"
    segments = ((0xC4, table), (0xC3, frame), (SOS, b"\x01\x01\0\x01\0\0"))
    header = b"".join(bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body for marker, body in segments)
    return b"\xff\xd8" + header + entropy + b"\xff\xd9"
