import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of importing Composer, see Attempt.environment
    from imagenet_mds_train.evaluation.evaluate import _real_labels

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage


def val(folder: Path, keys: list[str], classes: int = 1000) -> Any:
    """What a split of these keys looks like."""
    (folder / "val").mkdir()
    (folder / "val" / "keys.txt").write_text("".join(f"{key}\n" for key in keys), encoding="utf-8")
    info = SimpleNamespace(classes=tuple(map(str, range(classes))), samples=len(keys))
    return cast(Any, SimpleNamespace(storage=LocalStorage(folder / "val"), info=info))


def real(folder: Path, images: int = 50_000) -> Path:
    """The labels of image n are n and its half, both modulo 1,000; the first has none."""
    labels = [[], *([number % 1000, number // 2 % 1000] for number in range(2, images + 1))]
    (folder / "real.json").write_text(json.dumps(labels), encoding="utf-8")
    return folder / "real.json"


def test_labels_are_found_by_the_number_in_the_key(tmp_path: Path) -> None:
    split = val(tmp_path, [f"n01440764/ILSVRC2012_val_{number:08}.JPEG" for number in (50_000, 1, 7)])
    assert _real_labels(real(tmp_path), split) == [{0}, set(), {7, 3}]


@pytest.mark.parametrize(
    ("keys", "classes", "images", "words"),
    [
        (["a/b.JPEG"], 1000, 50_000, "is for ImageNet's val"),
        (["a/ILSVRC2012_val_00000001.JPEG"], 10, 50_000, "is for ImageNet's val"),
        (["a/ILSVRC2012_val_00000001.JPEG"], 1000, 49_999, "has the labels of 49,999 images"),
    ],
)
def test_labels_of_something_else_are_refused(
    tmp_path: Path, keys: list[str], classes: int, images: int, words: str
) -> None:
    with pytest.raises(UserError, match=words):
        _real_labels(real(tmp_path, images), val(tmp_path, keys, classes))


@pytest.mark.parametrize("content", ["{}x", '{"a": 1}', "[1, 2]", '[["dog"]]'])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "real.json").write_text(content, encoding="utf-8")
    split = val(tmp_path, ["a/ILSVRC2012_val_00000001.JPEG"])
    with pytest.raises(UserError, match=r"ReaL labels|has the labels of"):
        _real_labels(tmp_path / "real.json", split)
