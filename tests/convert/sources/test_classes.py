"""ImageNet's class numbers, which do not depend on the classes that a source has."""

from pathlib import Path

from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.classes import imagenet_names, name_classes, number_classes


def test_the_thousand_are_sorted_and_numbered_as_everywhere() -> None:
    wnids = list(imagenet_names())
    assert len(wnids) == 1000
    assert wnids == sorted(wnids)
    # As in torchvision's and timm's pretrained models.
    for number, wnid, name in ((0, "n01440764", "tench"), (207, "n02099601", "golden retriever")):
        assert (wnids[number], imagenet_names()[wnid]) == (wnid, name)
    assert (wnids[999], imagenet_names()["n15075141"]) == ("n15075141", "toilet tissue")


def test_a_part_of_imagenet_has_the_numbers_of_the_whole(tmp_path: Path) -> None:
    for wnid in ("n15075141", "n01443537"):
        (tmp_path / "train" / wnid).mkdir(parents=True)
        (tmp_path / "train" / wnid / "a.JPEG").write_bytes(b"x")
    source = open_source(str(tmp_path))
    assert len(source.classes) == 1000
    assert [sample.label for sample in source.samples("train")] == [1, 999]
    assert source.class_names[1] == "goldfish"


def test_other_folders_are_numbered_by_themselves() -> None:
    assert number_classes(["n01443537", "cat", "ant"]) == ("ant", "cat", "n01443537")
    assert name_classes(("ant", "n01443537"), {"ant": "small worker"}) == ("small worker", "goldfish")


def test_two_names_stand_for_two_classes_each() -> None:
    names = list(imagenet_names().values())
    assert sorted({name for name in names if names.count(name) > 1}) == ["crane", "maillot"]
