"""One set of images in every source's format, and what to compare of the resulting datasets."""

import hashlib
import io
import shutil
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy.io import savemat

from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.sources.base import Source
from imagenet_mds_convert.sources.classes import imagenet_names
from tests.support.drawing import encoded, files, noise

WNIDS = ("n01440764", "n01443537", "n02099601", "n15075141")
TRAIN_COUNTS = (4, 3, 5, 2)
VAL_WNIDS = ("n02099601", "n01440764", "n15075141", "n02099601", "n01443537", "n01440764")
"""The label of validation image 1, 2, 3 and so on: in no order."""


def val_name(number: int) -> str:
    """The official name of a validation image."""
    return f"ILSVRC2012_val_{number:08}.JPEG"


def fill(root: Path, *names: str, data: bytes | None = None) -> Path:
    """Create files, and folders for names that end in a slash.

    Args:
        root: the folder that the names are in; created if it is not there.
        names: the relative paths.
        data: the content of each file; its path if not given.
    """
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True, exist_ok=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode() if data is None else data)
    return root


def keys_of(source: Source, split: SplitName) -> list[str]:
    """The keys of a split."""
    return [sample.key for sample in source.samples(split)]


def make_images(root: Path) -> Path:
    """The images as an extracted tree, including an empty file and a truncated one."""
    jpeg = 0

    def put(path: Path) -> None:
        nonlocal jpeg
        jpeg += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        data = encoded(noise(seed=jpeg))
        path.write_bytes(data if jpeg not in (2, 6) else data[: 0 if jpeg == 2 else 200])

    for wnid, count in zip(WNIDS, TRAIN_COUNTS, strict=True):
        for number in range(count):
            put(root / "train" / wnid / f"{wnid}_{3 * number}.JPEG")
    for number, wnid in enumerate(VAL_WNIDS, 1):
        put(root / "val" / wnid / val_name(number))
    return root


def put_kaggle(tree: Path, root: Path) -> Path:
    """The images of a tree in the layout of Kaggle's download."""
    images = root / "ILSVRC" / "Data" / "CLS-LOC"
    shutil.copytree(tree / "train", images / "train")
    (images / "val").mkdir()
    for path in (tree / "val").glob("*/*"):
        shutil.copy(path, images / "val")
    lines = [f"ILSVRC2012_val_{number:08},{wnid} 85 1 499 272 " for number, wnid in enumerate(VAL_WNIDS, 1)]
    # Like Kaggle's, it is not in the order of the names.
    (root / "LOC_val_solution.csv").write_text("\n".join(["ImageId,PredictionString", *reversed(lines), ""]))
    (root / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius\n")
    return root


Row = tuple[bytes | None, str | None, int | None]
"""The bytes, the path and the label of an image in a parquet file."""


def write_parquet(path: Path, rows: list[Row], row_group: int = 3) -> None:
    """Write a parquet file like those on the hub."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    image = pa.array([{"bytes": data, "path": name} for data, name, _ in rows], kind)
    table = pa.table({"image": image, "label": pa.array([label for *_, label in rows], pa.int64())})
    pq.write_table(table, path, row_group_size=row_group)


def put_parquet(tree: Path, root: Path) -> Path:
    """A tree like the hub's: two files of train, one of val, one of test, with the images of each split mixed."""
    numbers = {wnid: number for number, wnid in enumerate(imagenet_names())}

    def rows_of(folder: Path) -> list[Row]:
        paths = sorted(folder.glob("*/*"), key=lambda path: hashlib.md5(path.name.encode()).digest())
        return [(p.read_bytes(), f"{p.stem}_{p.parent.name}{p.suffix}", numbers[p.parent.name]) for p in paths]

    train = rows_of(tree / "train")
    write_parquet(root / "data" / "train-00000-of-00002.parquet", train[:8])
    write_parquet(root / "data" / "train-00001-of-00002-0a1b2c3d.parquet", train[8:])
    write_parquet(root / "data" / "validation-00000-of-00001.parquet", rows_of(tree / "val"))
    write_parquet(root / "data" / "test-00000-of-00001.parquet", [(b"x", "ILSVRC2012_test_00000001.JPEG", -1)])
    return root


def shards(dataset: Path) -> dict[str, bytes]:
    """The shards, indices and keys of a dataset by path: everything except the manifests, which name the source."""
    return {name: data for name, data in files(dataset).items() if not name.endswith("manifest.json")}


DEVKIT_IDS = (("n15075141", 1), ("n01443537", 2), ("n01440764", 3), ("n02099601", 4))
"""wnid to ILSVRC2012 id: in another order than the wnids."""


def member(name: str, data: bytes = b"", **attributes: Any) -> tuple[tarfile.TarInfo, bytes]:
    """A tar member and its content."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for attribute, value in attributes.items():
        setattr(info, attribute, value)
    return info, data


def tar_of(members: Sequence[tuple[tarfile.TarInfo, bytes]], tar_format: int = tarfile.GNU_FORMAT) -> bytes:
    """The bytes of a tar with these members."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tar_format) as tar:
        for info, data in members:
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def put_archives(tree: Path, root: Path, tar_format: int = tarfile.GNU_FORMAT) -> Path:
    """The images of a tree as the official archives. Members are unsorted, because nothing guarantees their order."""
    root.mkdir(exist_ok=True)
    tars = []
    for folder in sorted((tree / "train").iterdir(), reverse=True):
        inner = [member(path.name, path.read_bytes()) for path in sorted(folder.iterdir(), reverse=True)]
        tars.append(member(f"{folder.name}.tar", tar_of(inner, tar_format)))
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_of(tars, tar_format))
    val = [member(path.name, path.read_bytes()) for path in (tree / "val").glob("*/*")]
    (root / "ILSVRC2012_img_val.tar").write_bytes(tar_of(val, tar_format))
    (root / "ILSVRC2012_devkit_t12.tar.gz").write_bytes(devkit())
    return root


def devkit(meta: bytes | None = None, ground_truth: str | None = None, folder: str = "ILSVRC2012_devkit_t12") -> bytes:
    """The devkit with the labels of `VAL_WNIDS`."""
    ids = dict(DEVKIT_IDS)
    lines = "".join(f"{ids[wnid]}\n" for wnid in VAL_WNIDS) if ground_truth is None else ground_truth
    parts = {
        f"{folder}/readme.txt": b"of no interest",
        f"{folder}/data/meta.mat": meta_mat() if meta is None else meta,
        f"{folder}/data/ILSVRC2012_validation_ground_truth.txt": lines.encode(),
    }
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, data in parts.items():
            tar.addfile(member(name, data)[0], io.BytesIO(data))
    return buffer.getvalue()


def meta_mat(leaves: Sequence[tuple[str, int]] = DEVKIT_IDS) -> bytes:
    """`meta.mat` as MATLAB wrote it: a column of structures, leaves first, then their ancestors."""
    rows: list[tuple[object, ...]] = [
        (number, wnid, f"name of {wnid}, other name", "gloss", 0, [], 0, 1300) for wnid, number in leaves
    ]
    rows += [(number, f"n0000000{number}", "above", "gloss", 2, [1, 2], 1, 0) for number in (5, 6)]
    fields = [
        "ILSVRC2012_ID",
        "WNID",
        "words",
        "gloss",
        "num_children",
        "children",
        "wordnet_height",
        "num_train_images",
    ]
    synsets = np.zeros((len(rows), 1), [(field, object) for field in fields])
    for place, row in enumerate(rows):
        synsets[place, 0] = row
    buffer = io.BytesIO()
    savemat(buffer, {"synsets": synsets}, do_compression=True)
    return buffer.getvalue()


_NUMBERS = {wnid: number for number, wnid in enumerate(imagenet_names())}


def put_class_tars(tree: Path, root: Path) -> Path:
    """A tar for each class of each split."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for folder in (tree / split).iterdir():
            members = [member(path.name, path.read_bytes()) for path in sorted(folder.iterdir(), reverse=True)]
            (root / split / f"{folder.name}.tar").write_bytes(tar_of(members))
    return root


def put_webdataset(tree: Path, root: Path) -> Path:
    """The tars of `timm/imagenet-1k-wds`, two of train and one of val, with their companions."""
    root.mkdir()
    for name, split, part in (("train-0000", "train", 0), ("train-0001", "train", 1), ("validation-00", "val", None)):
        paths = sorted((tree / split).glob("*/*"), key=lambda path: path.name[::-1])
        members = []
        for path in paths if part is None else paths[part::2]:
            members.append(member(f"{path.stem}.cls", f"{_NUMBERS[path.parent.name]}\n".encode()))
            members.append(member(f"{path.stem}.JPEG", path.read_bytes()))
            members.append(member(f"{path.stem}.json", b"{}"))
        (root / f"imagenet1k-{name}.tar").write_bytes(tar_of(members))
    return root
