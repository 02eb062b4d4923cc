"""Datasets of the library's own writer, with every encoding of images and labels: what `inspect` shows, what training
reads and what the library decodes are the same, or it is refused by the column."""

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from streaming import MDSWriter, StreamingDataset

from imagenet_mds.cli.inspect import inspect
from imagenet_mds.dataset.access import Dataset
from imagenet_mds.dataset.samples import open_sample, stored_samples
from imagenet_mds.dataset.split_info import read_split_info
from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_train.augment.decode import decode_slowly
from imagenet_mds_train.config.load import load_config
from imagenet_mds_train.data.loaders import TrainingImages
from tests.support.drawing import encoded, noise

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("blocks")]


def write(root: Path, image: str, label: str, samples: list[tuple[Any, Any]]) -> LocalStorage:
    """A split with one shard of these images and labels."""
    with MDSWriter(columns={"x": image, "y": label}, out=str(root / "train"), hashes=["xxh64"]) as writer:
        for x, y in samples:
            writer.write({"x": x, "y": y})
    return LocalStorage(root / "train")


def pictures(mode: str, kind: str) -> list[Any]:
    """Three pictures as a column of this encoding takes them."""
    drawn = [noise(40, 30, seed=seed).convert(mode) for seed in range(3)]
    if kind == "bytes":
        return [encoded(picture, "PNG") for picture in drawn]
    if kind == "jpeg":
        return [Image.open(io.BytesIO(encoded(picture))) for picture in drawn]
    return drawn


@pytest.mark.parametrize(
    ("image", "mode"),
    [
        ("pil", "L"),
        ("pil", "RGB"),
        ("pil", "RGBA"),
        ("pil", "CMYK"),
        ("pil", "1"),
        ("pil", "I;16"),
        ("jpeg", "L"),
        ("jpeg", "RGB"),
        ("png", "L"),
        ("png", "RGBA"),
        ("bytes", "RGB"),
    ],
)
@pytest.mark.parametrize("label", ["int", "uint8"])
def test_images_and_labels_are_those_that_the_library_decodes(
    tmp_path: Path, image: str, mode: str, label: str
) -> None:
    labels = [153, 0, 200]
    split = write(tmp_path, image, label, list(zip(pictures(mode, image), labels, strict=True)))
    info = read_split_info(split)
    stock = StreamingDataset(local=str(split.root), batch_size=1, shuffle=False, allow_unsafe_types=True)
    images = TrainingImages(load_config("demo", ranks=1), Dataset.at(str(tmp_path)).split("train").shard_cache, 3)
    for number, stored in enumerate(stored_samples(split, info)):
        theirs = stock[number]
        picture = Image.open(io.BytesIO(theirs["x"])) if image == "bytes" else theirs["x"]
        assert stored.record.label == int(theirs["y"]) == labels[number]
        shown = open_sample(split, info, stored)
        assert (shown.mode, shown.size) == (picture.mode, picture.size)
        assert np.array_equal(np.asarray(shown), np.asarray(picture))
        read, read_label = images.read(number)
        assert read_label == labels[number]
        if mode != "I;16":  # which Pillow would make white
            assert np.array_equal(decode_slowly(read.image), np.asarray(picture.convert("RGB")))


def test_a_text_label_is_refused_by_its_column_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, "jpeg", "str", list(zip(pictures("RGB", "jpeg"), ["3", "dog", "4"], strict=True)))
    images = TrainingImages(load_config("demo", ranks=1), Dataset.at(str(tmp_path)).split("train").shard_cache, 3)
    assert images.read(0)[1] == 3
    with pytest.raises(UserError, match=r"sample 1 of .* has no class number in y: column y \(str\) holds 'dog' where"):
        images.read(1)
    inspect(str(tmp_path), sample=0)
    assert "class:         3" in capsys.readouterr().out
    with pytest.raises(
        UserError, match=r"sample 1: column y \(str\) holds 'dog' .*: give a dataset with class numbers"
    ):
        inspect(str(tmp_path), sample=1)


@pytest.mark.parametrize(
    ("image", "label", "words"),
    [
        ("ndarray", "int", "has x as ndarray: give a dataset with images there, one in each sample, as jpeg"),
        ("str", "int", "has x as str: give a dataset with images"),
        ("jpeg", "ndarray", "has labels in y as ndarray: give a dataset with class numbers there"),
        ("jpeg", "pkl", "has labels in y as pkl"),
    ],
)
def test_columns_that_hold_something_else_are_refused_before_anything_is_read(
    tmp_path: Path, image: str, label: str, words: str
) -> None:
    x = {"ndarray": np.zeros((4, 4), np.uint8), "str": "a", "jpeg": pictures("RGB", "jpeg")[0]}[image]
    y = {"int": 1, "ndarray": np.zeros(3, np.int64), "pkl": 3}[label]
    split = write(tmp_path, image, label, [(x, y)])
    with pytest.raises(UserError, match=words):
        read_split_info(split)
