"""A val that is held out of train, class by class."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imagenet_mds.cli.verify import verify
from imagenet_mds.errors import UserError
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.plan import draws, held_out
from tests.support.datasets import keys_at, manifest_at
from tests.support.drawing import files, make_tree
from tests.support.running import convert_here


@pytest.fixture
def train_alone(tmp_path: Path) -> Path:
    """A tree without val: 10, 4 and 1 images in its classes."""
    tree = make_tree(tmp_path / "tree", n90000001=10, n90000002=4, n90000003=1)
    shutil.rmtree(tree / "val", ignore_errors=True)
    return tree


@given(st.lists(st.integers(0, 5), min_size=1, max_size=60), st.floats(0.01, 0.99), st.integers(0, 5))
def test_each_class_gives_its_share_and_never_all(classes: list[int], fraction: float, seed: int) -> None:
    labels = np.array(sorted(classes), np.int64)
    mask = held_out(labels, draws([f"key{number}" for number in range(len(labels))], seed), fraction)
    for label in set(classes):
        count, held = classes.count(label), int(mask[labels == label].sum())
        assert held == (0 if count == 1 else min(max(round(count * fraction), 1), count - 1))


@pytest.mark.usefixtures("in_process")
def test_the_splits_are_apart_balanced_and_repeatable(train_alone: Path, tmp_path: Path) -> None:
    assert convert_here(train_alone, tmp_path / "a", val_fraction=0.3) == 0
    keys = {split: set(keys_at(tmp_path / "a" / split)) for split in ("train", "val")}
    assert keys["train"] & keys["val"] == set()
    assert len(keys["train"] | keys["val"]) == 15
    assert [entry.samples for entry in manifest_at(tmp_path / "a" / "val").classes] == [3, 1, 0]
    assert [entry.samples for entry in manifest_at(tmp_path / "a" / "train").classes] == [7, 3, 1]
    for split in ("val", "train"):
        assert convert_here(train_alone, tmp_path / "b", val_fraction=0.3, split=split) == 0
    assert files(tmp_path / "a") == files(tmp_path / "b")
    convert_here(train_alone, tmp_path / "c", val_fraction=0.3, seed=1)
    assert set(keys_at(tmp_path / "c" / "val")) != keys["val"]
    with pytest.raises(UserError, match=r"another val_fraction \(0\.3, now 0\.5\)"):
        convert_here(train_alone, tmp_path / "a", val_fraction=0.5)


@pytest.mark.usefixtures("in_process")
def test_a_repair_knows_what_was_held_out(train_alone: Path, tmp_path: Path) -> None:
    convert_here(train_alone, tmp_path / "mds", val_fraction=0.3)
    before = files(tmp_path / "mds")
    (tmp_path / "mds" / "val" / "shard.00000.mds").unlink()
    (tmp_path / "mds" / "train" / "shard.00000.mds").unlink()
    assert verify(str(tmp_path / "mds"), repair=str(train_alone)) == 0
    assert files(tmp_path / "mds") == before


@pytest.mark.usefixtures("in_process")
def test_where_nothing_is_to_be_held_out_it_is_refused(train_alone: Path, tmp_path: Path) -> None:
    for fraction in (0.0, 1.0, -0.5):
        with pytest.raises(UserError, match=r"--val-fraction .*: choose a share between 0 and 1, such as 0\.1"):
            convert_here(train_alone, tmp_path / "mds", val_fraction=fraction)
    (train_alone / "val" / "n90000001").mkdir(parents=True)
    shutil.copy(next((train_alone / "train" / "n90000001").iterdir()), train_alone / "val" / "n90000001")
    with pytest.raises(
        UserError, match="--val-fraction is for a source with train alone, and this one has train and val"
    ):
        convert_here(train_alone, tmp_path / "mds", val_fraction=0.1)


@pytest.mark.usefixtures("in_process")
def test_a_val_is_never_held_out_of_a_train_that_keeps_its_images(train_alone: Path, tmp_path: Path) -> None:
    convert_here(train_alone, tmp_path / "a")
    with pytest.raises(
        UserError, match=r"a/train was converted with --val-fraction None, and this split has --val-frac"
    ):
        convert_here(train_alone, tmp_path / "a", val_fraction=0.3, split="val")
    convert_here(train_alone, tmp_path / "b", val_fraction=0.3, split="val")
    with pytest.raises(
        UserError, match=r"b/val was converted with --val-fraction 0\.3, and this split has --val-fraction"
    ):
        convert_here(train_alone, tmp_path / "b")
    with pytest.raises(
        UserError, match=r"b/val was converted with --classes imagenet, and this split has --classes pres"
    ):
        convert_here(train_alone, tmp_path / "b", val_fraction=0.3, classes="present", split="train")


@pytest.mark.usefixtures("in_process")
def test_a_val_is_never_held_out_by_another_seed_than_train(train_alone: Path, tmp_path: Path) -> None:
    convert_here(train_alone, tmp_path / "mds", val_fraction=0.3, split="train")
    with pytest.raises(UserError, match=r"mds/train was converted with --seed 0, and this split has --seed 7"):
        convert_here(train_alone, tmp_path / "mds", val_fraction=0.3, split="val", seed=7)
    assert not (tmp_path / "mds" / "val").exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("first", ["train", "val"])
def test_images_that_arrive_between_the_splits_move_none_into_both(
    train_alone: Path, tmp_path: Path, first: SplitName
) -> None:
    convert_here(train_alone, tmp_path / "mds", val_fraction=0.3, split=first)
    folder = train_alone / "train" / "n90000001"
    # The images with the smallest draws are held out: large ones raise only the number, small ones take their place.
    new = [f"n90000001/new{number}.JPEG" for number in range(200)]
    order = np.argsort(draws(new, 0))
    for number in order[-10:] if first == "train" else order[:10]:
        shutil.copy(folder / "n90000001_0.JPEG", train_alone / "train" / new[number])
    second: SplitName = "val" if first == "train" else "train"
    with pytest.raises(UserError, match=rf"mds/{first} has 3 of the images of this split \(n90000001/n90000001_"):
        convert_here(train_alone, tmp_path / "mds", val_fraction=0.3, split=second)
    assert not (tmp_path / "mds" / second).exists()


@pytest.mark.usefixtures("in_process")
@pytest.mark.parametrize("options", [{}, {"plan": True}, {"split": "val"}])
def test_classes_of_one_image_give_no_val_and_nothing_is_written(tmp_path: Path, options: dict[str, Any]) -> None:
    tree = make_tree(tmp_path / "tree", n90000001=1, n90000002=1)
    shutil.rmtree(tree / "val")
    with pytest.raises(UserError, match=r"--val-fraction 0\.5: every class has one image, so none can be held out"):
        convert_here(tree, tmp_path / "mds", val_fraction=0.5, **options)
    assert not (tmp_path / "mds").exists()
