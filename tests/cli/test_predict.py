"""The names that `imagenet-mds predict` gives classes."""

from pathlib import Path

import pytest

from imagenet_mds.cli.predict import names_for_people
from imagenet_mds.errors import UserError
from tests.support.datasets import manifest_at

HERE = Path("one.pt")


def test_imagenets_classes_have_names_without_a_dataset() -> None:
    assert names_for_people(HERE, ["n01440764", "n02123045", "mine"]) == ["tench", "tabby", "mine"]


def test_a_dataset_gives_its_names_to_its_classes_and_to_numbers(dataset: Path) -> None:
    manifest = manifest_at(dataset / "val")
    wnids, names = [one.wnid for one in manifest.classes], [one.name for one in manifest.classes]
    numbers = [str(number) for number in range(len(names))]
    for classes in (wnids, numbers):
        assert names_for_people(HERE, classes, manifest, "mds") == names
    for other in (wnids[::-1], wnids[1:], numbers[1:], numbers[:-1]):
        with pytest.raises(UserError, match=r"one\.pt knows \d+ classes and mds has 10, not the same: pass"):
            names_for_people(HERE, other, manifest, "mds")
