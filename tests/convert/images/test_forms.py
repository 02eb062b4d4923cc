"""The three forms of a stored image: the file, the file with restart tiles, pixels."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from PIL import Image
from streaming import StreamingDataset

from imagenet_mds.dataset.manifest import Policy
from imagenet_mds.dataset.raw_pixels import decode_raw, encode_raw, is_raw
from imagenet_mds.errors import UserError
from imagenet_mds.jpeg.tiles import TileMap
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import StoredForm
from imagenet_mds_convert.conversion import SplitConversion
from imagenet_mds_convert.images.policy import Scaling, likely_bytes
from imagenet_mds_convert.images.prepare import check_stored, prepare
from imagenet_mds_convert.jpeg.tiling import untile_jpeg
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.base import Unusable
from tests.support.command import run
from tests.support.datasets import keys_at, manifest_at
from tests.support.drawing import encoded, files, make_tree, noise
from tests.support.running import convert_here
from tests.support.shards import read_shard
from tests.support.sources import make_images, put_archives, shards


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree of images large enough for tiles, one that cannot have them, and one that is not a JPEG."""
    tree = make_tree(tmp_path_factory.mktemp("forms") / "tree", n00000001=2, n00000002=2)
    for split in ("train", "val"):
        for folder in (tree / split).iterdir():
            for number in range(3):
                picture = noise(160, 130, seed=number)
                (folder / f"{folder.name}_{split}{number}.JPEG").write_bytes(encoded(picture, quality=90))
            (folder / f"{folder.name}_p.JPEG").write_bytes(encoded(noise(160, 130), progressive=True))
            (folder / f"{folder.name}_q.JPEG").write_bytes(_png(noise(160, 130)))
    return tree


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.usefixtures("in_process")
def test_tiles_keep_every_file_and_stock_readers_see_the_same(photographs: Path, tmp_path: Path) -> None:
    for name, tiles in (("plain", False), ("tiled", True)):
        assert convert_here(photographs, tmp_path / name, tiles=tiles) == 0
    manifest = manifest_at(tmp_path / "tiled" / "train")
    stored = {
        name: [r for shard in sorted((tmp_path / name / "train").glob("*.mds")) for r in read_shard(shard)]
        for name in ("plain", "tiled")
    }
    keys = keys_at(tmp_path / "tiled" / "train")
    tiled = 0
    for key, plain, other in zip(keys, stored["plain"], stored["tiled"], strict=True):
        assert (plain.index, plain.label) == (other.index, other.label)
        if TileMap.parse(other.image):
            tiled += 1
            assert untile_jpeg(other.image) == plain.image
            if not key.endswith("_q.JPEG"):  # the one that was turned into JPEG
                assert plain.image == (photographs / "train" / key).read_bytes()
            assert np.array_equal(_pixels(plain.image), _pixels(other.image))
        else:
            assert other.image == plain.image
    assert tiled == manifest.tiled
    assert 6 <= tiled < manifest.samples
    stock = StreamingDataset(local=str(tmp_path / "tiled" / "train"), batch_size=1, validate_hash="xxh64")
    for number, plain in enumerate(stored["plain"]):
        assert np.array_equal(np.asarray(stock[number]["x"].convert("RGB")), _pixels(plain.image))
    for name in ("plain", "tiled"):
        assert run("verify", tmp_path / name, "--deep").status == 0


@pytest.mark.usefixtures("in_process")
def test_raw_samples_are_images_to_stock_readers(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert_here(photographs, tmp_path / "raw", raw=True, min_side=64, split="train") == 0
    split = tmp_path / "raw" / "train"
    manifest, keys = manifest_at(split), keys_at(split)
    stock = StreamingDataset(local=str(split), batch_size=1, validate_hash="xxh64")
    records = [record for shard in sorted(split.glob("*.mds")) for record in read_shard(shard)]
    for number, (key, record) in enumerate(zip(keys, records, strict=True)):
        with Image.open(photographs / "train" / key) as image:
            source = image.convert("RGB")
        width, height = source.size
        expected = source
        if min(source.size) > 64:
            short = min(width, height)
            size = (round(width * 64 / short), round(height * 64 / short))
            expected = source.resize(size, Image.Resampling.LANCZOS)
        assert np.array_equal(decode_raw(record.image), np.asarray(expected))
        assert np.array_equal(np.asarray(stock[number]["x"]), np.asarray(expected))
    assert manifest.scaled == sum(key.rsplit("_", 1)[1][0] in "tpq" for key in keys)
    assert run("verify", tmp_path / "raw", "--deep", "--repair", photographs).status == 0
    shown = run("inspect", tmp_path / "raw", "--sample", 0, "--json")
    assert f'"xxh64": "{xxhash.xxh64_hexdigest(records[0].image)}"' in shown.out
    assert run("preview", tmp_path / "raw", tmp_path / "sheet.png").status == 0


@pytest.mark.parametrize("tiles", [False, True])
@pytest.mark.usefixtures("in_process")
def test_half_size_copies_are_beside_training_images_and_stock_readers_ignore_them(
    photographs: Path, tmp_path: Path, tiles: bool
) -> None:
    assert convert_here(photographs, tmp_path / "plain", tiles=tiles) == 0
    assert convert_here(photographs, tmp_path / "half", tiles=tiles, half=True) == 0
    for split in ("train", "val"):
        plain, copied = (
            [r for shard in sorted((tmp_path / name / split).glob("*.mds")) for r in read_shard(shard)]
            for name in ("plain", "half")
        )
        assert [replace(record, half=b"") for record in copied] == plain
        if split == "val":
            assert not any(record.half for record in copied)
            continue
        manifest = manifest_at(tmp_path / "half" / split)
        assert manifest.half_bytes == sum(len(record.half) for record in copied) > 0
        for key, record in zip(keys_at(tmp_path / "half" / split), copied, strict=True):
            with Image.open(io.BytesIO(record.image)) as image:
                if min(image.size) < 128:
                    assert not record.half
                    continue
                with Image.open(io.BytesIO(record.half)) as half:
                    assert half.size == (image.width // 2, image.height // 2), key
                    assert _decibels(half, image.reduce(2)) > 30
            assert (TileMap.parse(record.half) is not None) == tiles
        stock = StreamingDataset(local=str(tmp_path / "half" / split), batch_size=1, validate_hash="xxh64")
        for number, record in enumerate(plain):
            assert np.array_equal(np.asarray(stock[number]["x"].convert("RGB")), _pixels(record.image))
    shown = run("inspect", tmp_path / "half")
    assert "with half-size copies" in shown.out


@pytest.mark.usefixtures("in_process")
def test_a_damaged_copy_is_found_and_repaired(photographs: Path, tmp_path: Path) -> None:
    assert convert_here(photographs, tmp_path / "half", half=True, split="train") == 0
    assert run("verify", tmp_path / "half", "--deep").status == 0
    shard = next((tmp_path / "half" / "train").glob("*.mds"))
    whole = shard.read_bytes()
    half = next(record.half for record in read_shard(shard) if record.half)
    shard.write_bytes(whole.replace(half, half[: len(half) // 2] + bytes(len(half) - len(half) // 2)))
    assert run("verify", tmp_path / "half").status == 1
    assert run("verify", tmp_path / "half", "--repair", photographs).status == 0
    assert shard.read_bytes() == whole
    with pytest.raises(Unusable, match="its half-size copy: "):
        check_stored(encoded(noise(160, 130)), half[: len(half) // 2])


def test_the_plan_says_what_copies_take(photographs: Path, tmp_path: Path) -> None:
    planning = ("convert", photographs, tmp_path / "mds", "--half", "--plan")
    shown = run(*planning)
    assert shown.status == 0
    assert "train: half-size copies take " in shown.out
    assert "val: half-size" not in shown.out
    planned = [json.loads(line) for line in run(*planning, "--log-json").out.splitlines()]
    train = next(line for line in planned if line["split"] == "train")
    assert 0 < train["half_bytes"] < train["bytes"]
    refused = run("convert", photographs, tmp_path / "mds", "--half", "--raw", "--min-side", 64)
    assert (refused.status, refused.err.count("\n")) == (2, 1)
    assert "give --raw or --half, not both" in refused.err


def test_a_scaled_image_gets_tiles_too() -> None:
    stored = prepare(encoded(noise(400, 300), quality=90), "decode", Scaling(max_side=200), "tiles")
    assert stored.scaled
    assert stored.tiled
    with Image.open(io.BytesIO(stored.image)) as image:
        assert image.size == (200, 150)


@pytest.mark.parametrize(("form", "half"), [("tiles", None), ("raw", None), ("file", 90), ("tiles", 90)])
def test_a_damaged_image_is_left_out_in_every_form(form: StoredForm, half: int | None) -> None:
    data = encoded(noise(160, 130), quality=90)
    for broken in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9", b"", b"no picture"):
        with pytest.raises(Unusable):
            prepare(broken, "decode", Scaling(), form, half_quality=half)


def test_a_raw_sample_cut_short_is_found() -> None:
    data = encode_raw(np.zeros((5, 7, 3), np.uint8))
    check_stored(data)
    for broken in (data[:-1], data + b"\0"):
        assert is_raw(broken)
        with pytest.raises(Unusable, match="a raw sample of 7 x 5 pixels cannot have"):
            check_stored(broken)
    with pytest.raises(ValueError, match="no raw RGB sample"):
        decode_raw(b"\xff\xd8")


def test_raw_without_a_side_is_refused(photographs: Path, tmp_path: Path) -> None:
    outcome = run("convert", photographs, tmp_path / "mds", "--raw", "--plan")
    assert (outcome.status, outcome.out, outcome.err.count("\n")) == (2, "", 1)
    assert "give a side too, --min-side 256" in outcome.err


@pytest.mark.usefixtures("in_process")
def test_raw_shards_respect_the_size_and_are_the_same_from_archives(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    assert convert_here(tree, tmp_path / "mds", raw=True, max_side=24) == 0
    planned = SplitConversion.plan_for(
        open_source(str(tree)), "train", LocalStorage(tmp_path), Policy(shard_size_bytes=4096, raw=True, max_side=24)
    ).plan
    # Three images of 24 x 18 pixels take 3,888 bytes; as files of 900 bytes, four would fit.
    assert np.diff(planned.shard_starts).tolist() == [3, 3, 3, 3, 2]
    assert all(shard.size_bytes < 4096 + 1000 for shard in manifest_at(tmp_path / "mds" / "train").shards)
    archives = put_archives(tree, tmp_path / "archives")
    assert convert_here(archives, tmp_path / "same", raw=True, max_side=24) == 0
    assert shards(tmp_path / "same") == shards(tmp_path / "mds")


@pytest.mark.parametrize(
    ("options", "size_bytes", "expected"),
    [
        ({}, 110_000, 110_000),
        ({"tiles": True}, 110_000, 110_000),
        ({"half_quality": 90}, 120_000, 140_000),
        ({"min_side": 256}, 110_000, 600 + 256 * 341 // 2),
        ({"min_side": 256}, 9_000, 9_000),
        ({"max_side": 400}, 110_000, 600 + 400 * 300 // 2),
        ({"raw": True, "min_side": 256}, 1, 256 * 341 * 3),
        ({"raw": True, "max_side": 400}, 1 << 28, 400 * 300 * 3),
        ({"raw": True, "max_side": 400}, (1 << 28) + 1, 0),  # it is left out
    ],
)
def test_an_image_is_planned_as_it_will_most_likely_be(options: dict[str, Any], size_bytes: int, expected: int) -> None:
    policy = Policy(**options)
    scaling = Scaling(policy.max_side, policy.min_side)
    assert likely_bytes(size_bytes, scaling, policy.form, half=policy.layout.half) == expected


@pytest.mark.usefixtures("in_process")
def test_a_shard_that_grows_beyond_what_can_be_addressed_is_reported(
    photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imagenet_mds.dataset.mds._OFFSETS_END", 50_000)
    with pytest.raises(UserError) as caught:
        convert_here(photographs, tmp_path / "mds", raw=True, min_side=200, shard_size="1MiB")
    assert str(caught.value).startswith(f"{tmp_path}/mds/train/shard.00000.mds: a shard of ")
    assert str(caught.value).endswith(": give a smaller --shard-size")
    assert not list((tmp_path / "mds").rglob("*.mds"))


def test_raw_and_tiles_exclude_each_other(photographs: Path, tmp_path: Path) -> None:
    outcome = run("convert", photographs, tmp_path / "mds", "--raw", "--tiles")
    assert (outcome.status, outcome.err.count("\n")) == (2, 1)
    assert "give --raw or --tiles, not both" in outcome.err
    assert not files(tmp_path)


def _decibels(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one.convert("L"), float) - np.asarray(other.convert("L"), float)) ** 2)
    return float(10 * np.log10(255**2 / error))


def _pixels(data: bytes) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
