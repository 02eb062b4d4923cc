"""Shards of Streaming's own writer: every encoding of images and labels is read, and what is damaged is named."""

import struct
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from streaming import MDSWriter

from imagenet_mds.dataset.mds import shard_basename
from imagenet_mds.dataset.raw_pixels import open_stored
from imagenet_mds.dataset.stock_shards import NotAClass, decode_label, decode_stock_shard


def _stock_shard(tmp_path: Path, image: str, pictures: list[Any]) -> bytes:
    columns = {"x": image, "y": "int"}
    with MDSWriter(out=str(tmp_path), columns=columns, size_limit=1 << 20, progress_bar=False) as out:
        for label, picture in enumerate(pictures, 1):
            out.write({"x": picture, "y": label})
    return (tmp_path / shard_basename(0)).read_bytes()


def test_a_truncated_shard_of_the_stock_writer_is_refused_by_name(tmp_path: Path) -> None:
    whole = _stock_shard(tmp_path, "bytes", [b"abcdef", b"gh"])
    assert [record.label for record in decode_stock_shard(whole, "a.mds")] == [1, 2]
    for length in range(len(whole)):
        with pytest.raises(ValueError, match=r"^a\.mds "):
            list(decode_stock_shard(whole[:length], "a.mds"))
    for wrong in (0, 5, 7, 1 << 31):
        broken = bytearray(whole)
        struct.pack_into("<I", broken, struct.unpack_from("<I", whole, 4)[0], wrong)
        with pytest.raises(ValueError, match=r"^a\.mds: sample 0 is damaged: its columns take \d+ bytes"):
            list(decode_stock_shard(bytes(broken), "a.mds"))


def test_pixels_of_every_mode_of_the_stock_writer_are_opened(tmp_path: Path) -> None:
    modes = ("1", "L", "P", "LA", "PA", "La", "I;16", "I;16B", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr", "LAB", "HSV")
    pictures = [Image.new(mode, (40, 30)) for mode in (*modes, "I", "F", "RGB")]
    shard = _stock_shard(tmp_path, "pil", pictures)
    opened = [open_stored(record.image) for record in decode_stock_shard(shard, "a.mds")]
    assert [(image.mode, image.size) for image in opened] == [(image.mode, (40, 30)) for image in pictures]


@pytest.mark.parametrize(
    ("encoding", "value"),
    [
        *(("int", 153), ("int8", 127), ("uint8", 200), ("uint16", 40_000), ("int64", 999)),
        *(("str", "12"), ("str_int", 12), ("str_float", 7.0), ("float32", 7.0), ("json", 7), ("bytes", b"7")),
    ],
)
def test_a_label_of_any_encoding_is_read_as_streaming_reads_it(encoding: str, value: Any) -> None:
    from streaming.base.format.mds.encodings import mds_decode, mds_encode

    data = mds_encode(encoding, value)
    assert decode_label(encoding, data) == int(mds_decode(encoding, data))


@pytest.mark.parametrize(
    ("encoding", "value", "words"),
    [
        ("str", "dog", r"column y \(str\) holds 'dog' where a class number should be"),
        ("json", ["a", 1], r"column y \(json\) holds '\[\"a\", 1\]' where"),
        ("bytes", b"\xff\xd8", r"holds '\\xff\\xd8' where"),
        ("str", "", r"holds '' where"),
        ("str", "nan", "holds nan, which is no class number"),
        ("str_float", 2.5, r"holds 2\.5, which is no class number"),
        ("float64", float("inf"), "holds inf, which"),
        ("int", -1, "holds -1, which"),
        ("int8", -103, "holds -103, which"),
    ],
)
def test_a_label_that_is_no_class_number_is_refused(encoding: str, value: Any, words: str) -> None:
    from streaming.base.format.mds.encodings import mds_encode

    with pytest.raises(NotAClass, match=words):
        decode_label(encoding, mds_encode(encoding, value))


def test_a_column_without_class_numbers_is_refused() -> None:
    with pytest.raises(NotAClass, match="column y holds jpeg"):
        decode_label("jpeg", b"")
