"""Tars of classes, as ImageNet-21k has them, and WebDataset's tars: the images of a tree give the tree's shards."""

import bz2
import gzip
import lzma
import pickle
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from imagenet_mds.errors import UserError
from imagenet_mds_convert.sources import open_source
from tests.support.datasets import manifest_at
from tests.support.running import convert_here
from tests.support.sources import make_images, member, put_class_tars, put_webdataset, shards, tar_of


def put_files(root: Path, *names: str) -> None:
    """Files of one byte."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


@pytest.mark.parametrize("put", [put_class_tars, put_webdataset], ids=["class tars", "webdataset"])
def test_it_gives_the_same_shards_as_the_tree(
    tmp_path: Path, in_process: None, put: Callable[[Path, Path], Path]
) -> None:
    tree = make_images(tmp_path / "tree")
    root = put(tree, tmp_path / "root")
    assert convert_here(tree, tmp_path / "a") == convert_here(root, tmp_path / "b") == 0
    assert shards(tmp_path / "a") == shards(tmp_path / "b") != {}
    manifest = manifest_at(tmp_path / "b" / "train")
    assert (manifest.source.kind, manifest.not_taken) == (open_source(str(root)).kind, [])
    assert manifest.source.fingerprint == manifest_at(tmp_path / "a" / "train").source.fingerprint
    source = open_source(str(root))
    assert pickle.loads(pickle.dumps(source)) == source


def test_class_tars_in_the_folder_itself_are_train(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    root = put_class_tars(tree, tmp_path / "root") / "train"
    source = open_source(str(root))
    assert (source.kind, source.splits) == ("class-tars", ("train",))
    expected = [(sample.key, sample.label) for sample in open_source(str(tree)).samples("train")]
    assert [(sample.key, sample.label) for sample in source.samples("train")] == expected


def test_classes_that_imagenet_lacks_are_numbered_by_themselves(tmp_path: Path) -> None:
    for wnid in ("n90000002", "n01440764", "n90000001"):
        (tmp_path / f"{wnid}.tar").write_bytes(tar_of([member(f"{wnid}_1.JPEG", b"x"), member("readme.txt", b"x")]))
    (tmp_path / "words.txt").write_text("n90000001\tfirst thing, other\n")
    source = open_source(str(tmp_path))
    assert source.classes == ("n01440764", "n90000001", "n90000002")
    assert source.class_names == ("tench", "first thing", "n90000002")
    (not_taken,) = source.find("train").not_taken
    assert (not_taken.place, not_taken.suffix, not_taken.files) == ("<class>.tar", ".txt", 3)


def test_an_unpacking_that_broke_off_is_refused_with_both_counts(tmp_path: Path) -> None:
    root = put_class_tars(make_images(tmp_path / "tree"), tmp_path / "root")
    shutil.copytree(tmp_path / "tree" / "train" / "n01440764", root / "train" / "n01440764")
    with pytest.raises(UserError, match=r"train has 4 classes as tars and 1 as folders \(n01440764\): unpack the rest"):
        open_source(str(root))


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ([("a.jpg", b"x"), ("b.jpg", b"y"), ("b.cls", b"0")], r"has a\.jpg without a label \(a\.cls\)"),
        ([("a.jpg", b"x"), ("a.png", b"x"), ("a.cls", b"0")], r"has a\.png and a\.jpg: keep one"),
        ([("n01440764_1.jpg", b"x"), ("n01440764_1.cls", b"7")], "n01440764_1 has label '7', which is not ImageNet's"),
        ([("n01440764_1.jpg", b"x"), ("n01440764_1.cls", b"x")], "n01440764_1 has label 'x', which is not ImageNet's"),
        ([("a.txt", b"x")], "fewer than two classes"),
        ([("a.jpg", b"x"), ("a.cls", b"0")], "fewer than two classes"),
        ([("a.jpg", b"x"), ("a.cls", b"3"), ("a.cls", b"7")], "has two labels of a, '3' and '7': which is wrong"),
        (
            [("a.jpg", b"x"), ("a.cls", b"0"), ("./a.jpg", b"x"), ("b.jpg", b""), ("b.cls", b"1")],
            r"has \./a\.jpg and a\.jpg",
        ),
    ],
)
def test_a_tar_that_cannot_be_used_is_refused(tmp_path: Path, members: list[tuple[str, bytes]], words: str) -> None:
    (tmp_path / "imagenet-train-000000.tar").write_bytes(tar_of([member(name, data) for name, data in members]))
    with pytest.raises(UserError, match=words):
        open_source(str(tmp_path))


def test_labels_of_ones_own_are_numbers_or_names(tmp_path: Path) -> None:
    def tars(train: list[str], val: list[str]) -> Path:
        for name, labels in (("train/000.tar", train), ("val/000.tar", val)):
            (tmp_path / name).parent.mkdir(exist_ok=True)
            members = [
                one
                for number, label in enumerate(labels)
                for one in (member(f"{number}.png", b"x"), member(f"{number}.cls", label.encode()))
            ]
            (tmp_path / name).write_bytes(tar_of(members))
        return tmp_path

    source = open_source(str(tars(["11.0", "2", "02."], ["3"])))
    assert source.classes == tuple(str(number) for number in range(12))
    assert [(sample.key, sample.label) for sample in source.samples("train")] == [
        ("11/0.png", 11),
        ("2/1.png", 2),
        ("2/2.png", 2),
    ]
    assert open_source(str(tmp_path), split="val").classes == source.classes
    named = open_source(str(tars(["dog", "cat"], ["dog"])))
    assert (named.classes, [sample.label for sample in named.samples("val")]) == (("cat", "dog"), [1])


def test_members_that_belong_to_no_image_are_counted_and_links_left_out(tmp_path: Path) -> None:
    members = [
        member("a.jpg", b"x"),
        member("a.cls", b"0"),
        member("a.json", b"{}"),
        member("b.jpg", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("b.cls", b"1"),
        member("notes.md", b"x"),
        member(".hidden.jpg", b"x"),
    ]
    (tmp_path / "x-train-0.tar").write_bytes(tar_of(members))
    found = open_source(str(tmp_path)).find("train")
    assert [(sample.key, sample.where) for sample in found.samples][1] == (
        "1/b.jpg",
        "a symbolic link in the archive, not followed",
    )
    assert [(entry.suffix, entry.files) for entry in found.not_taken] == [(".md", 1)]


def _not_taken(root: Path, **options: Any) -> dict[str, list[str]]:
    """The examples of what is not taken, by split."""
    source = open_source(str(root), **options)
    return {
        split: [f"{entry.place}: {entry.example}" for entry in source.find(split).not_taken] for split in source.splits
    }


@pytest.mark.parametrize("put", [put_class_tars, put_webdataset], ids=["class tars", "webdataset"])
def test_what_lies_beside_the_tars_is_counted_or_noted(tmp_path: Path, put: Callable[[Path, Path], Path]) -> None:
    root = put(make_images(tmp_path / "tree"), tmp_path / "root")
    put_files(
        root, "README.md", "ds-test-0.tar", "ds-train-1.tar.gz", "ds-valid.tar.part", "loose.jpg", "n01491361.TAR"
    )
    put_files(root, "devkit/a.txt")
    in_root = {
        "train": ["./: ds-train-1.tar.gz", "./: loose.jpg", "./: n01491361.TAR"],
        "val": ["./: ds-valid.tar.part"],
    }
    if put is put_class_tars:
        put_files(root, "train/cat/deep/a.jpg", "train/n01491361.tar.gz", "val/a.jpg", "val/words.txt")
        in_root["train"] += ["train/: n01491361.tar.gz", "train/*/: cat/deep/a.jpg"]
        in_root["val"] += ["val/: a.jpg"]
    assert _not_taken(root) == in_root
    assert _not_taken(root, split="val") == {"val": ["./: loose.jpg", *in_root["val"]]}
    assert open_source(str(root)).warnings == (
        f"{root} has folders that are not used: devkit",
        f"{root} has files that are not used: ds-test-0.tar",
    )


def test_a_packed_split_beside_another_one_is_noted(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    shutil.rmtree(tree / "val")
    put_files(tree, "val.tar", "train_backup.zip")
    note = f"{tree} has no val but val.tar, which is not taken: unpack it into val/"
    assert open_source(str(tree)).warnings == (note,)
    assert open_source(str(tree), split="train").warnings == ()
    put_files(tree, "val/n01440764/a.JPEG")
    assert open_source(str(tree)).warnings == ()


def test_images_without_a_suffix_are_known_by_their_first_bytes(tmp_path: Path) -> None:
    members = [
        member("n01440764_1", b"\xff\xd8\xff\xe0"),
        member("n01440764_1.cls", b"0"),
        member("README", b"text"),
        member("folder.v1/n01440764_2", b"\x89PNG\r\n\x1a\n" + bytes(5000)),
        member("folder.v1/n01440764_2.cls", b"0.0"),
        member("n01440764_3.mpo", b"x"),
        member("n01440764_3.cls", b"0"),
    ]
    (tmp_path / "wds").mkdir()
    (tmp_path / "wds" / "x-train-0.tar").write_bytes(tar_of(members))
    found = open_source(str(tmp_path / "wds")).find("train")
    assert [sample.key for sample in found.samples] == [
        f"n01440764/{name}" for name in ("folder.v1/n01440764_2", "n01440764_1", "n01440764_3.mpo")
    ]
    assert [entry.example for entry in found.not_taken] == ["README"]
    (tmp_path / "tars").mkdir()
    for wnid in ("n01440764", "n01443537"):
        images = [one for one in members if not one[0].name.endswith(".cls")]
        (tmp_path / "tars" / f"{wnid}.tar").write_bytes(tar_of(images))
    source = open_source(str(tmp_path / "tars"))
    assert len(source.samples("train")) == 6
    assert source.read(source.samples("train")[0].where) == b"\xff\xd8\xff\xe0"


@pytest.mark.parametrize(
    ("tool", "compress"),
    [("gzip", gzip.compress), ("bzip2", bz2.compress), ("xz", lzma.compress), ("zstd", b"\x28\xb5\x2f\xfd".__add__)],
)
def test_a_compressed_tar_is_refused_with_the_tool(
    tmp_path: Path, tool: str, compress: Callable[[bytes], bytes]
) -> None:
    (tmp_path / "n01440764.tar").write_bytes(compress(tar_of([member("BZh.JPEG", b"x")])))
    (tmp_path / "n01443537.tar").write_bytes(tar_of([member("BZh.JPEG", b"x")]))
    with pytest.raises(UserError, match=rf"n01440764\.tar is compressed with {tool}, .* `{tool} -dc` first"):
        open_source(str(tmp_path)).samples("train")


def test_one_member_in_two_tars_is_refused_by_their_names(tmp_path: Path) -> None:
    link = member("z.jpg", type=tarfile.LNKTYPE, linkname="a.jpg")
    for number in range(2):
        members = [link, member("z.cls", b"1"), member(f"{number}.jpg", b"x"), member(f"{number}.cls", b"0")]
        (tmp_path / f"x-train-{number}.tar").write_bytes(tar_of(members))
    with pytest.raises(UserError, match=r"has 1/z\.jpg twice, in x-train-0\.tar and in x-train-1\.tar$"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("put", [put_class_tars, put_webdataset], ids=["class tars", "webdataset"])
def test_a_tar_cut_off_anywhere_is_reported(tmp_path: Path, put: Callable[[Path, Path], Path]) -> None:
    root = put(make_images(tmp_path / "tree"), tmp_path / "root")
    path = sorted(root.rglob("*.tar"))[0]
    whole = path.read_bytes()
    for length in range(0, len(whole.rstrip(b"\0")), 777):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=rf"{path.name} is truncated or broken at byte .*: download it again$"):
            open_source(str(root)).samples("train")


def test_a_tar_beside_class_folders_is_a_backup(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    expected = open_source(str(tree)).samples("train")
    (tree / "train" / "backup2.tar").write_bytes(tar_of([member("a.jpg", b"x"), member("a.cls", b"0")]))
    source = open_source(str(tree))
    assert (source.kind, source.samples("train")) == ("tree", expected)
    assert [entry.suffix for entry in source.find("train").not_taken] == [".tar"]


def test_class_tars_of_train_in_the_folder_and_of_val_below_are_both_taken(tmp_path: Path) -> None:
    root = put_class_tars(make_images(tmp_path / "tree"), tmp_path / "root")
    for tar in (root / "train").iterdir():
        tar.rename(root / tar.name)
    (root / "train").rmdir()
    source = open_source(str(root))
    assert source.splits == ("train", "val")
    assert len(source.samples("train")) == 14


@pytest.mark.parametrize(
    "label",
    [b"", b"-1", b"2.5", b"1e9", b"cat\nx", b"30000000", b"9" * 5000, b"../x", b"..", b"a/b", b"\xff\xfe", b"tab\tbed"],
)
def test_a_label_that_is_no_class_is_refused(tmp_path: Path, label: bytes) -> None:
    (tmp_path / "x-train-0.tar").write_bytes(tar_of([member("a.jpg", b"x"), member("a.cls", label)]))
    with pytest.raises(UserError, match=r"x-train-0\.tar: a\.cls holds .*, which is no class number or name"):
        open_source(str(tmp_path))


def test_names_of_val_that_train_lacks_are_refused(tmp_path: Path) -> None:
    for split, labels in (("train", ("cat", "dog")), ("val", ("cat", "eel"))):
        members = [
            one
            for number, label in enumerate(labels)
            for one in (member(f"{number}.png", b"x"), member(f"{number}.cls", label.encode()))
        ]
        (tmp_path / f"x-{split}-0.tar").write_bytes(tar_of(members))
    with pytest.raises(UserError, match="has classes in val that train lacks: eel"):
        open_source(str(tmp_path))
    assert open_source(str(tmp_path), split="train").classes == ("cat", "dog", "eel")


@pytest.mark.parametrize("labels", [("0", "1", "abc"), ("2", "10", "x")])
def test_numbers_and_names_among_the_labels_are_refused(tmp_path: Path, labels: tuple[str, ...]) -> None:
    members = [
        one
        for number, label in enumerate(labels)
        for one in (member(f"{number}.png", b"x"), member(f"{number}.cls", label.encode()))
    ]
    (tmp_path / "x-train-0.tar").write_bytes(tar_of(members))
    with pytest.raises(UserError, match=rf"x-train-0\.tar: 2 has label '{labels[-1]}', and others have numbers"):
        open_source(str(tmp_path))
