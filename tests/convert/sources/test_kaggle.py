"""Kaggle's layout: recognised at every level, the same shards as from the tree, and refusals with a hint."""

import os
import pickle
import shutil
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.kaggle import KaggleSource
from imagenet_mds_convert.sources.tree import TreeSource
from tests.support.datasets import manifest_at
from tests.support.running import convert_here
from tests.support.sources import make_images, put_kaggle, shards, val_name


@pytest.fixture
def kaggle(tmp_path: Path) -> Path:
    """The images of `make_images` in the layout of Kaggle's download."""
    return put_kaggle(make_images(tmp_path / "tree"), tmp_path / "kaggle")


def test_it_gives_the_same_shards_as_the_tree(kaggle: Path, tmp_path: Path, in_process: None) -> None:
    assert convert_here(tmp_path / "tree", tmp_path / "a") == convert_here(kaggle, tmp_path / "b") == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b") != {}
    ours, theirs = manifest_at(tmp_path / "b" / "val"), manifest_at(tmp_path / "a" / "val")
    assert (ours.fingerprint, ours.source.fingerprint) == (theirs.fingerprint, theirs.source.fingerprint)
    assert (ours.source.kind, theirs.source.kind) == ("kaggle", "tree")


@pytest.mark.parametrize("inner", ["", "ILSVRC", "ILSVRC/Data", "ILSVRC/Data/CLS-LOC"])
def test_it_is_recognised_from_above_and_from_within(kaggle: Path, inner: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(str(kaggle / inner))
    assert isinstance(source, KaggleSource)
    assert (source.kind, source.splits, len(source.classes)) == ("kaggle", ("train", "val"), 1000)
    monkeypatch.chdir(kaggle / inner)
    assert open_source(".") == source
    assert pickle.loads(pickle.dumps(source)) == source
    (sample, *_) = source.samples("val")
    assert (sample.key, sample.label) == (f"n01440764/{val_name(2)}", 0)
    assert len(source.read(sample.where)) == sample.size_bytes


def test_one_split_alone_is_a_source(kaggle: Path) -> None:
    images = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    (images / "train").rename(images / "test")
    assert open_source(str(kaggle)).splits == ("val",)
    (images / "test").rename(images / "train")
    shutil.rmtree(images / "val")
    (kaggle / "LOC_val_solution.csv").unlink()
    assert open_source(str(kaggle)).splits == ("train",)


def test_a_sorted_val_needs_no_solution(kaggle: Path) -> None:
    """A val/ that was sorted into class folders, with the CSV files and without."""
    images = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.rmtree(images / "val")
    shutil.copytree(kaggle.parent / "tree" / "val", images / "val")
    sorted_val = open_source(str(kaggle)).samples("val")
    assert sorted_val == TreeSource.open(LocalStorage(images)).samples("val")
    (kaggle / "LOC_val_solution.csv").unlink()
    assert open_source(str(kaggle)).samples("val") == sorted_val
    assert isinstance(open_source(str(images)), TreeSource)


@pytest.mark.parametrize(
    ("csv", "words"),
    [
        (None, r"LOC_val_solution.csv is missing, and val/ has no labels without it: .*`--split train`"),
        ("", "LOC_val_solution.csv does not begin with ImageId,PredictionString"),
        ("a,b\n", "LOC_val_solution.csv does not begin with ImageId,PredictionString"),
        ("ImageId,PredictionString\nx\n", "LOC_val_solution.csv, line 2: expected ImageId"),
        ("ImageId,PredictionString\nx,\n", "LOC_val_solution.csv, line 2: expected ImageId"),
        (
            "ImageId,PredictionString\n\nx,7 1 2 3 4\n",
            "LOC_val_solution.csv, line 3: expected ImageId",
        ),
        (
            "ImageId,PredictionString\nILSVRC2012_val_00000001,n99999999 1\n",
            "has classes that .*/train lacks: n99999999; extract all",
        ),
        ("ImageId,PredictionString\n\0\xff,n01440764 1\n", "LOC_val_solution.csv is no text file: save it as UTF-8"),
    ],
)
def test_labels_that_cannot_be_used_are_refused(kaggle: Path, csv: str | None, words: str) -> None:
    path = kaggle / "LOC_val_solution.csv"
    path.unlink()
    if csv is not None:
        path.write_bytes(csv.encode("latin1"))
    with pytest.raises(UserError, match=words):
        open_source(str(kaggle))


def test_an_image_without_a_label_is_refused(kaggle: Path) -> None:
    folder = kaggle / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    os.link(folder / val_name(1), folder / "other.JPEG")
    with pytest.raises(UserError, match=r"other\.JPEG has no line in .*LOC_val_solution\.csv"):
        open_source(str(kaggle)).samples("val")


def test_what_is_not_kaggles_is_not_taken_for_it(kaggle: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not Kaggle's layout: it has no ILSVRC/Data/CLS-LOC/train or"):
        open_source(str(tmp_path / "tree"), "kaggle")
    images = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    (images / "train" / "cats").mkdir()
    (images / "train" / "cats" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match="train has folders whose names are not wnids: cats"):
        open_source(str(kaggle))
    shutil.rmtree(images / "train")
    shutil.rmtree(images / "val")
    (images / "train" / "n01440764").mkdir(parents=True)
    (images / "train" / "n01440764" / "a.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match="fewer than two classes"):
        open_source(str(kaggle))
