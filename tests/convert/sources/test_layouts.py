"""Which layout a folder has, split by split, and what is said of formats that are not taken."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from imagenet_mds.cli.verify import verify
from imagenet_mds.errors import UserError
from imagenet_mds.storage.local import LocalStorage
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.sources import open_source
from tests.support.datasets import manifest_at
from tests.support.running import convert_here
from tests.support.sources import (
    make_images,
    put_archives,
    put_class_tars,
    put_kaggle,
    put_parquet,
    put_webdataset,
    shards,
)

TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"


def test_each_split_is_taken_from_wherever_it_is(
    tmp_path: Path, in_process: None, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = make_images(tmp_path / "tree")
    root = put_archives(tree, tmp_path / "root")
    (root / TRAIN).unlink()
    shutil.copytree(tree / "train", root / "train")
    assert convert_here(root, tmp_path / "a") == convert_here(tree, tmp_path / "b") == 0
    assert "the splits come from two layouts: train from tree, val from archives" in capsys.readouterr().err
    assert shards(tmp_path / "a") == shards(tmp_path / "b") != {}
    assert [manifest_at(tmp_path / "a" / split).source.kind for split in ("train", "val")] == ["tree", "archives"]


@pytest.mark.parametrize("split", [None, "train", "val"])
def test_a_split_that_is_there_twice_is_refused_by_both_names(tmp_path: Path, split: SplitName | None) -> None:
    tree = make_images(tmp_path / "tree")
    root = put_archives(tree, tmp_path / "root")
    shutil.copytree(tree / "train", root / "train")
    if split == "val":
        assert open_source(str(root), split=split).splits == ("val",)
        return
    with pytest.raises(UserError, match=rf"has train twice: {root}/{TRAIN} \(archives\) and {root}/train \(tree\)\."):
        open_source(str(root), split=split)
    assert open_source(str(root), "tree").splits == ("train",)
    assert open_source(str(root), "archives").splits == ("train", "val")


def test_only_the_split_that_is_asked_for_is_opened(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    archives = put_archives(tree, tmp_path / "archives")
    (archives / DEVKIT).unlink()
    kaggle = put_kaggle(tree, tmp_path / "kaggle")
    (kaggle / "LOC_val_solution.csv").unlink()
    unsorted = tmp_path / "unsorted"
    shutil.copytree(tree / "train", unsorted / "train")
    (unsorted / "val").mkdir()
    shutil.copy(next((tree / "val").glob("*/*")), unsorted / "val")
    expected = open_source(str(tree)).samples("train")
    for root in (archives, kaggle, unsorted):
        with pytest.raises(UserError, match="--split train"):
            open_source(str(root))
        found = open_source(str(root), split="train").samples("train")
        assert [(sample.key, sample.label) for sample in found] == [(sample.key, sample.label) for sample in expected]
        with pytest.raises(UserError):
            open_source(str(root), split="val")


def test_a_broken_train_does_not_stop_val(tmp_path: Path) -> None:
    archives = put_archives(make_images(tmp_path / "tree"), tmp_path / "archives")
    (archives / TRAIN).write_bytes(b"broken")
    assert len(open_source(str(archives), split="val").samples("val")) == 6


def test_a_flat_val_is_labelled_by_what_lies_beside_it(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    expected = [(sample.key, sample.label) for sample in open_source(str(tree)).samples("val")]
    tables = {DEVKIT: put_archives(tree, tmp_path / "a") / DEVKIT}
    tables["LOC_val_solution.csv"] = put_kaggle(tree, tmp_path / "k") / "LOC_val_solution.csv"
    for name, table in tables.items():
        root = tmp_path / f"with {name}"
        shutil.copytree(tree / "train", root / "train")
        (root / "val").mkdir()
        for path in (tree / "val").glob("*/*"):
            shutil.copy(path, root / "val")
        shutil.copy(table, root)
        source = open_source(str(root))
        found = source.samples("val")
        assert [(sample.key, sample.label) for sample in found] == expected
        assert all(source.read(one.where) == (tree / "val" / one.key).read_bytes() for one in found)


def test_tiny_imagenet_is_taken_as_it_is(tmp_path: Path) -> None:
    root, wnids = tmp_path / "tiny-imagenet-200", ("n01443537", "n01629819", "n99999999")
    for wnid in wnids:
        (root / "train" / wnid / "images").mkdir(parents=True)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("a\t0\n")
        for number in range(2):
            (root / "train" / wnid / "images" / f"{wnid}_{number}.JPEG").write_bytes(b"\xff\xd8\xff" + wnid.encode())
    for split in ("val", "test"):
        (root / split / "images").mkdir(parents=True)
        for number in range(3):
            (root / split / "images" / f"{split}_{number}.JPEG").write_bytes(f"{split} {number}".encode())
    labels = ("n99999999", "n01443537", "n99999999")
    lines = [f"val_{number}.JPEG\t{wnid}\t0\t32\t44\t62\n" for number, wnid in enumerate(labels)]
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "words.txt").write_text("n99999999\tsomething new, other\nn00000000\tnothing\n")
    source = open_source(str(root))
    assert (source.splits, source.classes) == (("train", "val"), wnids)
    assert source.class_names == ("goldfish", "European fire salamander", "something new")
    assert [sample.key for sample in source.samples("train")][:2] == [
        f"n01443537/images/n01443537_{number}.JPEG" for number in range(2)
    ]
    found = {sample.key: sample for sample in source.samples("val")}
    assert {key: sample.label for key, sample in found.items()} == {
        "n01443537/val_1.JPEG": 0,
        "n99999999/val_0.JPEG": 2,
        "n99999999/val_2.JPEG": 2,
    }
    assert source.read(found["n01443537/val_1.JPEG"].where) == b"val 1"
    assert f"{root} has folders that are not used: test" in source.warnings
    (root / "val" / "images" / "stray.JPEG").write_bytes(b"x")
    with pytest.raises(UserError, match=r"stray\.JPEG has no line in .*val_annotations\.txt, so its label is unknown"):
        open_source(str(root))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["train/index.json", "train/shard.00000.mds"], "train is a finished MDS dataset: train from it with"),
        (["index.json", "shard.00000.mds"], "is a finished MDS dataset"),
        (["train.beton", "val.beton"], r"holds ffcv's \.beton files"),
        (["train-00000-of-01024", "validation-00000-of-00128"], "holds TFRecord files"),
        (["train/part.tfrecord-00000-of-00010"], "train holds TFRecord files"),
        (["train.X1/n01440764/a.JPEG", "val.X/n01440764/a.JPEG"], r"Kaggle's ImageNet-100: move the class folders of"),
        (["tiny-imagenet-200.zip"], r"holds an archive that is still packed \(tiny-imagenet-200\.zip\): unpack it"),
        (["cifar-10-python.tar.gz"], r"still packed \(cifar-10-python\.tar\.gz\)"),
        (["train.tar.gz", "val.tar.gz"], r"still packed \(train\.tar\.gz\)"),
        (["images.tar.bz2"], "still packed"),
        (["images.tar.zst", "ILSVRC2012_devkit_t12.tar.gz"], r"still packed \(images\.tar\.zst\)"),
        (["train", "test", "meta"], "is CIFAR-100, which is not taken"),
        (["data_batch_1", "test_batch"], r"holds CIFAR-10's batches without batches\.meta"),
        (["train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"], "holds IDX files, as MNIST has them"),
        (["partial-train/0000.parquet"], "holds a part of a dataset that the hub converted"),
        (["cifar-100-python/train"], "is CIFAR-100, which is not taken"),
        (["data_batch_1.bin", "test_batch.bin"], "CIFAR-10's binary version"),
        (["train/data-00000-of-00002.arrow", "dataset_dict.json"], "saved Hugging Face dataset"),
        (["train.lmdb/data.mdb"], "is an LMDB"),
        (["train.rec", "train.idx"], "MXNet's record files"),
        (["train_data_batch_1", "val_data"], "the downsampled ImageNet"),
    ],
)
def test_what_is_of_another_format_is_refused_by_its_name(tmp_path: Path, names: list[str], words: str) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=words) as caught:
        open_source(str(tmp_path))
    assert "Taken are: class folders in train/ and val/, the ILSVRC2012 archives" in str(caught.value)


def test_a_stray_file_of_another_format_beside_a_good_tree_is_nothing(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    (tree / "old.zip").write_bytes(b"x")
    (tree / "features.npy").write_bytes(b"x")
    assert open_source(str(tree)).splits == ("train", "val")


def test_a_split_that_the_source_lacks_is_refused_with_what_it_has(tmp_path: Path) -> None:
    tree = make_images(tmp_path / "tree")
    shutil.rmtree(tree / "val")
    with pytest.raises(UserError, match=r"the source has no val/: it has train; see `--split`"):
        open_source(str(tree), split="val")
    parquet = put_parquet(make_images(tmp_path / "other"), tmp_path / "hf")
    (parquet / "data" / "validation-00000-of-00001.parquet").unlink()
    with pytest.raises(UserError, match=r"the source has no val/: it has train"):
        open_source(str(parquet), split="val")


def test_two_layouts_with_other_classes_are_refused(tmp_path: Path) -> None:
    root = put_archives(make_images(tmp_path / "tree"), tmp_path / "root")
    (root / TRAIN).unlink()
    for name in ("cat", "dog"):
        (root / "train" / name).mkdir(parents=True)
        (root / "train" / name / "a.JPEG").write_bytes(b"x")
    with pytest.raises(
        UserError, match=r"two layouts whose classes differ: train \(tree\) 2 and val \(archives\) 1,000"
    ):
        open_source(str(root))


def test_an_empty_folder_beside_an_archive_is_no_second_copy(tmp_path: Path) -> None:
    root = put_archives(make_images(tmp_path / "tree"), tmp_path / "root")
    for folder in ("train", "val"):
        (root / folder).mkdir()
    assert open_source(str(root)).kind == "archives"


def test_labels_of_images_that_are_not_here_count_for_nothing(tmp_path: Path) -> None:
    """A part of ImageNet with the whole table of labels beside it."""
    kaggle = put_kaggle(make_images(tmp_path / "tree"), tmp_path / "kaggle")
    images = kaggle / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.rmtree(images / "train" / "n02099601")
    for number in (1, 4):
        (images / "val" / f"ILSVRC2012_val_{number:08}.JPEG").unlink()
    assert len(open_source(str(kaggle)).samples("val")) == 4
    flat = tmp_path / "flat"
    shutil.copytree(images, flat)
    shutil.copy(kaggle / "LOC_val_solution.csv", flat)
    assert len(open_source(str(flat), "tree").samples("val")) == 4


def test_a_repair_takes_the_layout_that_the_dataset_was_made_of(tmp_path: Path, in_process: None) -> None:
    tree = make_images(tmp_path / "tree")
    root = put_archives(tree, tmp_path / "root")
    shutil.copytree(tree / "train", root / "train")
    (next((root / "train").glob("*/*"))).unlink()
    assert convert_here(root, tmp_path / "mds", source_format="archives") == 0
    (tmp_path / "mds" / "train" / "shard.00000.mds").unlink()
    assert verify(str(tmp_path / "mds"), repair=str(root)) == 0


def test_a_class_that_came_later_is_refused_in_a_repair(tmp_path: Path, in_process: None) -> None:
    tree = make_images(tmp_path / "tree")
    assert convert_here(tree, tmp_path / "mds", classes="present") == 0
    (tmp_path / "mds" / "train" / "shard.00000.mds").unlink()
    shutil.copytree(tree / "train" / "n01440764", tree / "train" / "n01491361")
    with pytest.raises(UserError, match="the source has images of classes that the dataset does not know: n01491361"):
        verify(str(tmp_path / "mds"), repair=str(tree))


@pytest.mark.parametrize("put", [shutil.copytree, put_class_tars, put_webdataset])
def test_a_train_that_is_asked_for_is_all_that_is_looked_at(
    tmp_path: Path, put: Callable[[Path, Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    put(make_images(tmp_path / "tree"), tmp_path / "root")
    listed = LocalStorage.listing

    def listing(self: LocalStorage) -> object:
        if self.root.name in ("val", "valid"):
            raise PermissionError(13, "Permission denied", str(self.root))
        return listed(self)

    # As root, which tests may run as, every folder can be listed.
    monkeypatch.setattr(LocalStorage, "listing", listing)
    for folder in ("val", "valid"):
        (tmp_path / "root" / folder).mkdir(exist_ok=True)
    source = open_source(str(tmp_path / "root"), split="train")
    assert (len(source.samples("train")), source.warnings) == (14, ())
    with pytest.raises(UserError, match=r"has val twice, in val/ and in valid/|val cannot be listed"):
        open_source(str(tmp_path / "root"))
