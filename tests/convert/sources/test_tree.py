"""The extracted tree: which files are taken, and messages about trees that cannot be used."""

import os
import pickle
from pathlib import Path

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds_convert.sources import open_source
from imagenet_mds_convert.sources.base import Sample
from imagenet_mds_convert.sources.tree import TreeSource
from tests.support.sources import fill, keys_of


def test_classes_are_the_sorted_folders_of_both_splits_together(tmp_path: Path) -> None:
    root = fill(tmp_path, "train/n02/a.JPEG", "train/n10/a.JPEG", "train/n01/a.JPEG", "val/n10/b.JPEG")
    source = open_source(str(root))
    assert (source.kind, source.splits, source.classes) == ("tree", ("train", "val"), ("n01", "n02", "n10"))
    assert source.class_names == source.classes
    assert source.samples("val") == [Sample("n10/b.JPEG", 2, len("val/n10/b.JPEG"), "val/n10/b.JPEG")]
    assert source.read("val/n10/b.JPEG") == b"val/n10/b.JPEG"
    assert pickle.loads(pickle.dumps(source)) == source


@pytest.mark.parametrize("split", ["train", "val"])
def test_one_split_alone_is_a_source(tmp_path: Path, split: str) -> None:
    source = open_source(str(fill(tmp_path, f"{split}/n01/a.JPEG", f"{split}/n02/a.JPEG")))
    assert source.splits == (split,)


def test_images_are_taken_by_suffix_and_hidden_ones_are_not(tmp_path: Path) -> None:
    taken = ["n01/a.JPEG", "n01/b.jpg", "n01/c.PNG", "n01/d.x.jpeg", "n01/j/k.JPEG", "n02/a.jpeg"]
    others = ["n01/.e.JPEG", "n01/f.txt", "n01/g", "n01/h.JPEG.part", "n01/i.JPEG/", "n01/.l/m.JPEG", ".n03/a.JPEG"]
    source = open_source(str(fill(tmp_path, *(f"train/{name}" for name in taken + others), "train/README.JPEG")))
    assert source.classes == ("n01", "n02")
    assert keys_of(source, "train") == taken


def test_keys_are_sorted_as_bytes_are(tmp_path: Path) -> None:
    names = ["n01/B.JPEG", "n01/a.JPEG", "n01/a10.JPEG", "n01/a2.JPEG", "n01/\u00e9.JPEG", "n02/A.JPEG"]
    fill(tmp_path, *(f"train/{name}" for name in reversed(names)))
    assert keys_of(open_source(str(tmp_path)), "train") == names


def test_links_to_files_and_folders_are_followed_and_a_dangling_one_is_not_lost(tmp_path: Path) -> None:
    root = fill(tmp_path / "root", "train/n01/a.JPEG", "train/n02/")
    fill(tmp_path / "elsewhere", "n03/a.JPEG", "n03/b.JPEG")
    (root / "train" / "n03").symlink_to(tmp_path / "elsewhere" / "n03")
    (root / "train" / "n02" / "a.JPEG").symlink_to(tmp_path / "elsewhere" / "n03" / "b.JPEG")
    (root / "train" / "n02" / "gone.JPEG").symlink_to(tmp_path / "nowhere")
    source = open_source(str(root))
    assert [(sample.key, sample.size_bytes) for sample in source.samples("train")] == [
        ("n01/a.JPEG", 16),
        ("n02/a.JPEG", 10),
        ("n02/gone.JPEG", 0),
        ("n03/a.JPEG", 10),
        ("n03/b.JPEG", 10),
    ]
    with pytest.raises(FileNotFoundError):
        source.read("train/n02/gone.JPEG")


def test_names_that_are_not_wnids_give_one_warning(tmp_path: Path) -> None:
    wnids = open_source(str(fill(tmp_path / "a", "train/n01440764/a.JPEG", "train/n01443537/a.JPEG")))
    assert wnids.warnings == ()
    names = ["cat", "dog", "eel", "fox", "n0144076"]
    folders = ["n01440764", *names]
    others = open_source(str(fill(tmp_path / "b", *(f"train/{name}/a.JPEG" for name in folders))))
    assert others.warnings == (
        "class numbers are positions among the sorted folders and not ImageNet's, because of folders that ImageNet "
        "does not have: cat, dog, eel and 2 more",
    )
    own = open_source(str(fill(tmp_path / "c", *(f"train/{name}/a.JPEG" for name in names))))
    assert own.warnings == ("class folders whose names are not wnids are taken as they are: cat, dog, eel and 2 more",)


def test_names_for_people_come_from_the_mapping_beside_the_splits(tmp_path: Path) -> None:
    root = fill(tmp_path, *(f"train/n9000000{number}/a.JPEG" for number in (1, 2, 3)))
    (root / "LOC_synset_mapping.txt").write_text("n90000001 disc, round thing\n\nn90000003 great white disc\n")
    assert open_source(str(root)).class_names == ("disc", "n90000002", "great white disc")


@pytest.mark.parametrize(
    ("names", "where", "words"),
    [
        ([], "none", "there is no source at {root}/none: give the folder that holds train/ and val/"),
        (["file"], "file", "{root}/file is a file: give a folder"),
        ([], "", "{root} has no folders: give the folder that holds train/ and val/"),
        (["a.JPEG"], "", "{root} has no folders"),
        (["CLS-LOC/train/n01/"], "", "{root} holds neither train/ nor val/, but {root}/CLS-LOC does: give that folder"),
        (
            ["train/n01/", "train/n02/"],
            "train",
            "{root}/train is one split: give the folder above it, {root}; `convert --split train` takes it alone",
        ),
        (["n01/", "n02/"], "", "{root} holds neither train/ nor val/ but n01, n02: put the class folders into"),
        (["train/"], "", "{root}/train has no class folders: put the images into {root}/train/<wnid>/"),
        (["train/a.JPEG"], "", "{root}/train has no class folders"),
        (
            ["train/n01/a.JPEG", "train/n02/a.JPEG", "val/a.JPEG"],
            "",
            "{root}/val has its 1 images directly in it, and no labels for them: sort them into {root}/val/<wnid>/, or "
            "put ILSVRC2012_devkit_t12.tar.gz or LOC_val_solution.csv beside it, or val_annotations.txt into it; "
            "`--split train` converts train alone",
        ),
        (["train/n01/a.JPEG"], "", "{root} has one class, n01: a classifier needs two at least"),
        (["train/n01/a.txt", "train/n02/"], "", "{root}/train has no images in its folders (n01, n02)"),
        (
            ["train/n01/a.JPEG", "train/n02/a.JPEG", "val/n03/a.JPEG", "val/n01/a.JPEG"],
            "",
            "{root}/val has classes that {root}/train lacks: n03;",
        ),
    ],
)
def test_a_folder_that_cannot_be_used_is_answered_with_what_to_do(
    tmp_path: Path, names: list[str], where: str, words: str
) -> None:
    root = fill(tmp_path, *names)
    with pytest.raises(UserError) as caught:
        open_source(str(root / where) if where else str(root))
    assert words.format(root=root) in str(caught.value)


def test_an_address_of_another_kind_is_refused() -> None:
    with pytest.raises(UserError, match="ftp://host/imagenet: give a folder or an s3:// address"):
        open_source("ftp://host/imagenet")


@pytest.mark.parametrize(
    ("name", "words"), [(b"caf\xe9.JPEG", r"not UTF-8, b'caf\\xe9\.JPEG'"), (b"a\nb.JPEG", "a line break in it")]
)
def test_a_name_that_cannot_be_a_line_of_text_is_refused(tmp_path: Path, name: bytes, words: str) -> None:
    fill(tmp_path, "train/n01/a.JPEG", "train/n02/a.JPEG")
    Path(os.fsdecode(os.fsencode(tmp_path / "train" / "n01") + b"/" + name)).write_bytes(b"x")
    with pytest.raises(UserError, match=words):
        open_source(str(tmp_path)).samples("train")
    Path(os.fsdecode(os.fsencode(tmp_path / "train") + b"/" + name)).mkdir()
    with pytest.raises(UserError, match=words):
        open_source(str(tmp_path))


def test_a_folder_that_cannot_be_listed_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(folder: Path) -> None:
        raise PermissionError(13, "Permission denied", str(folder))

    fill(tmp_path, "train/n01/a.JPEG", "train/n02/a.JPEG")
    monkeypatch.setattr("imagenet_mds.storage.local.os.scandir", refuse)
    with pytest.raises(UserError, match=f"{tmp_path} cannot be listed: Permission denied"):
        TreeSource.open(LocalStorage(tmp_path))
