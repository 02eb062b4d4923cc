"""The shard format: Streaming reads our shards and writes the same ones, and damaged shards are refused."""

import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from streaming import MDSWriter, StreamingDataset
from streaming.vision import StreamingImageNet

from imagenet_mds.dataset import mds
from imagenet_mds.dataset.mds import (
    Layout,
    Record,
    ShardEncoder,
    describe_shard,
    index_json,
    read_cells,
    shard_basename,
)
from tests.support.command import done
from tests.support.datasets import keys_at, manifest_at
from tests.support.shards import encode_shard, read_shard

INT64 = st.integers(-(1 << 63), (1 << 63) - 1)
RECORDS = st.lists(st.builds(Record, INT64, st.binary(max_size=40), INT64), max_size=6)
THREE = [Record(7, b"\xff\xd8abc\xff\xd9", 3), Record(0, b"", 0), Record(1 << 40, b"x" * 11, 999)]


@pytest.fixture(scope="module")
def shard_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a file to write shards to."""
    return tmp_path_factory.mktemp("shard") / "shard.00000.mds"


@given(RECORDS)
def test_a_shard_gives_back_its_records(shard_file: Path, records: list[Record]) -> None:
    shard_file.write_bytes(encode_shard(records, 1 << 26))
    assert list(read_shard(shard_file)) == records


@given(RECORDS, st.binary(max_size=20))
def test_a_shard_with_copies_gives_back_its_records(shard_file: Path, records: list[Record], half: bytes) -> None:
    copied = [replace(record, half=half[: number * 5]) for number, record in enumerate(records)]
    shard_file.write_bytes(encode_shard(copied, 1 << 26, half=True))
    assert list(read_shard(shard_file)) == copied


def test_a_shard_of_other_columns_is_none_of_ours(tmp_path: Path) -> None:
    for number, columns in enumerate(({"x": "bytes", "y": "int"}, {"i": "int", "x": "bytes", "y": "int", "z": "int"})):
        with MDSWriter(out=str(tmp_path / str(number)), columns=columns, progress_bar=False) as out:
            out.write({"i": 1, "x": b"", "y": 1, "z": 1})
        with pytest.raises(ValueError, match=r"no header of a shard of ours.*its columns are"):
            list(read_shard(tmp_path / str(number) / shard_basename(0)))


def test_the_bytes_of_a_shard_never_change() -> None:
    data = encode_shard(THREE, 1 << 26)
    assert (len(data), xxhash.xxh64(data).hexdigest()) == (302, "b9a45eb827e0aa37")
    copied = encode_shard([replace(record, half=b"half") for record in THREE], 1 << 26, half=True)
    assert (len(copied), xxhash.xxh64(copied).hexdigest()) == (351, "b6eabf266d94f370")


def test_a_shard_equals_that_of_streamings_own_writer(tree: Path, tmp_path: Path) -> None:
    files = sorted((tree / "val").glob("*/*.JPEG"))[:5]
    columns = {"i": "int", "x": "jpeg", "y": "int"}
    with MDSWriter(out=str(tmp_path), columns=columns, hashes=["xxh64"], size_limit=1 << 20, progress_bar=False) as out:
        for index, path in enumerate(files):
            with Image.open(path) as image:
                out.write({"i": index, "x": image, "y": index % 2})
    ours = encode_shard([Record(index, path.read_bytes(), index % 2) for index, path in enumerate(files)], 1 << 20)
    assert ours == (tmp_path / shard_basename(0)).read_bytes()
    described = index_json([describe_shard(shard_basename(0), ours, len(files))], Layout(1 << 20))
    assert described == json.loads((tmp_path / "index.json").read_bytes())


def test_a_shard_with_copies_equals_that_of_streamings_own_writer(tmp_path: Path) -> None:
    columns = {"i": "int", "x": "jpeg", "x_half": "bytes", "y": "int"}
    records = [replace(record, half=bytes(record.index % 5)) for record in THREE]
    with MDSWriter(out=str(tmp_path), columns=columns, hashes=["xxh64"], size_limit=1 << 20, progress_bar=False) as out:
        for one in records:
            out.write({"i": one.index, "x": one.image, "x_half": one.half, "y": one.label})
    ours = encode_shard(records, 1 << 20, half=True)
    assert ours == (tmp_path / shard_basename(0)).read_bytes()
    described = index_json([describe_shard(shard_basename(0), ours, len(records))], Layout(1 << 20, half=True))
    assert described == json.loads((tmp_path / "index.json").read_bytes())


def test_a_truncated_shard_is_refused(shard_file: Path) -> None:
    whole = encode_shard(THREE, 1 << 26)
    for length in range(len(whole)):
        shard_file.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"shard\.00000\.mds"):
            list(read_shard(shard_file))


@pytest.mark.parametrize("half", [False, True])
def test_cells_are_read_alone_and_never_from_a_shard_that_is_cut_short(shard_file: Path, half: bool) -> None:
    records = [replace(record, half=b"half"[: number + 1] if half else b"") for number, record in enumerate(THREE)]
    whole = encode_shard(records, 1 << 26, half=half)
    shard_file.write_bytes(whole)
    sizes = Layout(0, half=half).header()["column_sizes"]
    for place, record in enumerate(records):
        cells = [record.label.to_bytes(8, "little"), record.image, *([record.half] if half else [])]
        assert read_cells(str(shard_file), place, sizes, [len(sizes) - 1, 1, 2][: len(cells)]) == cells
    for length in range(len(whole)):
        shard_file.write_bytes(whole[:length])
        with pytest.raises(OSError, match="The shard ends within sample 2"):
            read_cells(str(shard_file), 2, sizes, [len(sizes) - 1, 1])
    wrong = bytearray(whole)
    struct.pack_into("<I", wrong, _offset(whole, 2), 10)
    shard_file.write_bytes(wrong)
    with pytest.raises(ValueError, match="its columns take"):
        read_cells(str(shard_file), 2, sizes, [1])
    with pytest.raises(FileNotFoundError):
        read_cells(str(shard_file) + ".gone", 0, sizes, [1])


def test_a_shard_with_bytes_after_its_end_is_refused(shard_file: Path) -> None:
    shard_file.write_bytes(encode_shard(THREE, 1 << 26) + b"\0")
    with pytest.raises(ValueError, match="should end at byte 302 and ends at 303"):
        list(read_shard(shard_file))


@given(st.data())
def test_a_wrong_table_of_samples_gives_a_message_instead_of_a_struct_error(
    shard_file: Path, data: st.DataObject
) -> None:
    broken = bytearray(encode_shard(THREE, 1 << 26))
    place = data.draw(st.integers(1, 2))
    offset = data.draw(st.integers(0, (1 << 32) - 1).filter(lambda value: value != _offset(broken, place)))
    struct.pack_into("<I", broken, 4 + 4 * place, offset)
    shard_file.write_bytes(broken)
    with pytest.raises(ValueError, match=r"sample \d"):
        list(read_shard(shard_file))


def _offset(shard: bytes | bytearray, place: int) -> int:
    value: int = struct.unpack_from("<I", shard, 4 + 4 * place)[0]
    return value


def test_a_shard_beyond_its_offsets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # The real limit is 4 GiB, too much for a test.
    assert mds._OFFSETS_END == 1 << 32
    monkeypatch.setattr(mds, "_OFFSETS_END", 1 << 20)
    block = bytes(1 << 16)
    assert len(encode_shard([Record(index, block, 0) for index in range(15)], 1 << 26)) < 1 << 20
    with pytest.raises(ValueError, match=r"cannot be addressed: MDS offsets end at 1,048,576"):
        encode_shard([Record(index, block, 0) for index in range(16)], 1 << 26)


@given(st.lists(st.tuples(st.binary(max_size=300), st.booleans()), min_size=1, max_size=20))
def test_a_reused_buffer_and_missing_samples_do_not_change_a_shard(
    drawn: list[tuple[bytes, bool]],
) -> None:
    records = [Record(index, jpeg, index % 3) for index, (jpeg, _) in enumerate(drawn)]
    kept = [record for record, (_, keep) in zip(records, drawn, strict=True) if keep]
    buffer = bytearray(b"\xaa" * 700)
    encoder = ShardEncoder(len(records), Layout(1 << 26), buffer)
    for record in kept:
        encoder.add(record)
    assert bytes(encoder.finish()) == encode_shard(kept, 1 << 26)


def test_a_view_does_not_change_when_the_buffer_grows() -> None:
    encoder = ShardEncoder(100, Layout(1 << 26), bytearray(600), images_bytes=50)
    views = []
    for index in range(100):
        _, at = encoder.filled
        encoder.add(Record(index, bytes([index]) * 20, 0))
        views.append((at, encoder.view(at, encoder.filled[1])))
    whole = encoder.finish()
    assert all(whole[at : at + len(view)] == view for at, view in views)


def _pixels(image: Image.Image) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_stock_dataset_reads_every_sample_pixel_for_pixel(tree: Path, dataset: Path, split: str) -> None:
    manifest, keys = manifest_at(dataset / split), keys_at(dataset / split)
    changed = {entry.key for entry in manifest.changed}
    stock = StreamingDataset(local=str(dataset / split), batch_size=1, shuffle=False, validate_hash="xxh64")
    assert len(stock) == len(keys) == manifest.samples
    in_source = sorted(str(path.relative_to(tree / split)) for path in (tree / split).glob("*/*"))
    wnids = [entry.wnid for entry in manifest.classes]
    for key, sample in zip(keys, (stock[place] for place in range(len(keys))), strict=True):
        assert (in_source[sample["i"]], wnids[sample["y"]]) == (key, key.split("/")[0])
        with Image.open(tree / split / key) as image:
            if key in changed:
                # The image was encoded again, so it is similar, not equal.
                assert np.abs(_pixels(image).astype(int) - _pixels(sample["x"])).mean() < 4
            else:
                assert np.array_equal(_pixels(image), _pixels(sample["x"]))


@pytest.fixture(scope="module")
def tiled(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Convert the same images with restart tiles."""
    root = tmp_path_factory.mktemp("tiled") / "mds"
    done("convert", tree, root, "--tiles", "--shard-size", "64KiB")
    return root


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("form", ["dataset", "tiled"])
def test_the_stock_imagenet_dataset_reads_images_and_classes(
    tree: Path, request: pytest.FixtureRequest, form: str, split: str
) -> None:
    root: Path = request.getfixturevalue(form)
    manifest, keys = manifest_at(root / split), keys_at(root / split)
    # Most images of the tree can have tiles, but not all.
    assert (manifest.tiled > manifest.samples // 2) == (form == "tiled")
    changed = {entry.key for entry in manifest.changed}
    stock = StreamingImageNet(
        local=str(root), split=split, batch_size=1, shuffle=False, validate_hash="xxh64", transform=_pixels
    )
    wnids = [entry.wnid for entry in manifest.classes]
    assert len(stock) == len(keys) == manifest.samples
    for place, key in enumerate(keys):
        pixels, label = stock[place]
        with Image.open(tree / split / key) as image:
            assert key in changed or np.array_equal(_pixels(image), pixels)
        assert wnids[label] == key.split("/")[0]
