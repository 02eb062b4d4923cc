"""The commands inspect and preview."""

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from tests.support.command import done, run
from tests.support.datasets import keys_at, manifest_at
from tests.support.shards import read_shard


def test_a_sample_is_shown_with_its_source(dataset: Path, tree: Path) -> None:
    keys = keys_at(dataset / "val")
    for sample in (0, 17, 49):
        facts = json.loads(done("inspect", dataset, "--split", "val", "--sample", sample, "--json").out)
        source = tree / "val" / keys[sample]
        assert facts["key"] == keys[sample]
        assert facts["wnid"] == source.parent.name
        assert facts["bytes"] == source.stat().st_size
        with Image.open(source) as image:
            assert (facts["width"], facts["height"], facts["mode"]) == (*image.size, image.mode)


def test_a_sample_beyond_the_end_is_refused(dataset: Path) -> None:
    outcome = run("inspect", dataset, "--split", "val", "--sample", 50)
    assert outcome.status == 2
    assert "has no sample 50: it has 50, counted from 0" in outcome.err


def test_the_preview_shows_the_stored_samples_with_their_labels(dataset: Path, tmp_path: Path) -> None:
    done("preview", dataset, tmp_path / "sheet.png", "--start", 3, "--count", 10, "--columns", 5)
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.width > sheet.height > 200
        colours = sheet.convert("RGB").getcolors(1 << 24)
    assert colours is not None
    assert len(colours) > 1000, "images, not blanks"
    first = done("preview", dataset, tmp_path / "one.png", "--split", "val", "--start", 49, "--count", 9)
    assert "1 sample of" in first.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("sheet.jpg",), "choose a name that ends in .png"),
        (("sheet.png", "--start", "900"), "has no sample 900"),
        (("no/folder/sheet.png",), "there is no folder no/folder"),
        (("sheet.png", "--epoch", "1"), "pass --augmented too"),
        (("sheet.png", "--augmented", "--start", "3"), "leave them out with --augmented"),
    ],
)
def test_wrong_options_of_preview_are_refused(
    dataset: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    outcome = run("preview", dataset, *arguments, cwd=tmp_path)
    assert outcome.status == 2
    assert words in outcome.err
    assert len(outcome.err.splitlines()) == 1
    assert manifest_at(dataset / "train").samples < 900


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--epoch", "1"), "pass --config too"),
        (("--split", "val"), "--split selects the split of --sample"),
        (("--sample", "1", "--config", "demo"), "not both"),
    ],
)
def test_options_of_inspect_without_effect_are_refused(dataset: Path, arguments: tuple[str, ...], words: str) -> None:
    outcome = run("inspect", dataset, *arguments)
    assert outcome.status == 2
    assert words in outcome.err


@pytest.fixture
def damaged(dataset: Path, tmp_path: Path) -> Path:
    """Copy `dataset`; truncate a shard of val, and in one of train zero an image and remove the tables of another."""
    copy = tmp_path / "mds"
    shutil.copytree(dataset, copy)
    shard = copy / "val" / "shard.00000.mds"
    shard.write_bytes(shard.read_bytes()[:-200])
    shard = copy / "train" / "shard.00000.mds"
    data = shard.read_bytes()
    zeros, no_tables = (list(read_shard(shard))[place].image for place in (1, 3))
    data = data.replace(zeros, bytes(len(zeros))).replace(no_tables, no_tables.replace(b"\xff\xdb", b"\xff\xfe"))
    shard.write_bytes(data)
    return copy


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("inspect", "--split", "val", "--sample", "0"), "val/shard.00000.mds should end at byte "),
        (("preview", "sheet.png", "--split", "val"), "val/shard.00000.mds should end at byte "),
        (("inspect", "--sample", "1"), "train: sample 1 (KEY) does not decode (no image that can be read): "),
        (("preview", "sheet.png"), "train: sample 1 (KEY) does not decode (no image that can be read): "),
        (("preview", "sheet.png", "--start", "3"), "train: sample 3 (KEY) does not decode ("),
    ],
)
def test_damage_is_reported_with_its_location(damaged: Path, arguments: tuple[str, ...], words: str) -> None:
    command, *rest = arguments
    outcome = run(command, damaged, *rest, cwd=damaged.parent)
    assert outcome.status == 1
    assert len(outcome.err.splitlines()) == 1, outcome.err
    place = 3 if "--start" in rest else 1
    assert f"{damaged}/{words.replace('KEY', keys_at(damaged / 'train')[place])}" in outcome.err
    assert outcome.err.endswith(f": `imagenet-mds verify {damaged} --deep` finds all that is damaged\n")
    assert "0x" not in outcome.err


def test_an_unknown_class_is_damage(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "mds")
    shard = tmp_path / "mds" / "val" / "shard.00000.mds"
    data = shard.read_bytes()
    shard.write_bytes(data[:-8] + (10).to_bytes(8, "little"))
    last = len(list(read_shard(shard))) - 1
    outcome = run("inspect", tmp_path / "mds", "--split", "val", "--sample", last)
    assert outcome.status == 1
    assert (
        f"val/shard.00000.mds: sample {last} is of class 10, which does not exist: `imagenet-mds verify " in outcome.err
    )
