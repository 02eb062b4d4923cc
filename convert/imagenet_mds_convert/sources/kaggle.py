"""Kaggle's layout of ImageNet: `ILSVRC/Data/CLS-LOC/train/<wnid>/*.JPEG`, a flat `ILSVRC/Data/CLS-LOC/val/*.JPEG`, and
beside `ILSVRC/` the labels of `val` in `LOC_val_solution.csv`.

The keys are those of the extracted tree, so the same images give the same shards.
"""

import csv
from dataclasses import dataclass
from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.manifest import SPLITS
from imagenet_mds_convert.classes import WNID, name_classes, number_classes
from imagenet_mds_convert.source import Sample
from imagenet_mds_convert.sources.folders import (
    SYNSET_MAPPING_BASENAME,
    class_folder_images,
    folders_in,
    image_files,
    read_names,
    some,
    sorted_by_key,
)

SOLUTION_BASENAME = "LOC_val_solution.csv"
_IMAGES = Path("ILSVRC", "Data", "CLS-LOC")


def find_kaggle(location: Path) -> tuple[Path, Path] | None:
    """The folder that holds `train/` and `val/`, and the one that holds the CSV files, if this is Kaggle's layout.

    Args:
        location: the folder that holds `ILSVRC/`, `ILSVRC` itself or its `Data/CLS-LOC`.
    """
    location = location.resolve()
    for depth in range(len(_IMAGES.parts) + 1):
        # The first `depth` parts of ILSVRC/Data/CLS-LOC are in the location already.
        if depth and location.parts[-depth:] != _IMAGES.parts[:depth]:
            continue
        top = location.parents[depth - 1] if depth else location
        if any((top / _IMAGES / split).is_dir() for split in SPLITS):
            known = (top / SOLUTION_BASENAME).is_file() or depth < len(_IMAGES.parts)
            return (top / _IMAGES, top) if known else None
    return None


@dataclass(frozen=True)
class KaggleSource:
    """What `kaggle competitions download imagenet-object-localization-challenge` gives, unzipped.

    `images` holds `train/` and `val/`, `tables` the CSV files.
    """

    images: Path
    tables: Path
    classes: tuple[str, ...]
    names: tuple[str, ...]
    splits: tuple[str, ...]
    notes: tuple[str, ...]
    kind: str = "kaggle"

    @classmethod
    def open(cls, location: Path) -> "KaggleSource":
        """Look at the folders and the labels of `val`.

        Raises:
            UserError: it is not Kaggle's layout, or has no classes, no labels, or labels that nothing else knows.
        """
        if (found := find_kaggle(location)) is None:
            raise UserError(f"{location} is not Kaggle's layout: it has no {_IMAGES}/train or {_IMAGES}/val")
        images, tables = found
        splits = tuple(split for split in SPLITS if (images / split).is_dir())
        train = folders_in(images / "train") if "train" in splits else set()
        labels = _read_solution(tables / SOLUTION_BASENAME) if "val" in splits else {}
        if strange := sorted(name for name in train if not WNID.match(name)):
            raise UserError(f"{images / 'train'} has folders whose names are not wnids: {some(strange)}")
        val = set(labels.values())
        if train and (strange := sorted(val - train)):
            raise UserError(
                f"{tables / SOLUTION_BASENAME} has classes that {images / 'train'} lacks: {some(strange)}; "
                f"extract all of train/"
            )
        classes = number_classes(train | val)
        if len(train | val) < 2:
            raise UserError(f"{images} has fewer than two classes: a classifier needs two at least")
        names = name_classes(classes, read_names(tables / SYNSET_MAPPING_BASENAME))
        return cls(images, tables, classes, names, splits, ())

    def samples(self, split: str) -> list[Sample]:
        """Every image file of the split, sorted by key.

        Raises:
            UserError: there is none, a folder cannot be listed, an image has no label.
        """
        if split == "train":
            return class_folder_images(self.images, split, self.classes)
        solution, folder = self.tables / SOLUTION_BASENAME, self.images / split
        labels = _read_solution(solution)
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        found = []
        for name, size_bytes in image_files(folder):
            wnid = labels.get(Path(name).stem)
            if wnid is None:
                raise UserError(f"{folder / name} has no line in {solution}: its label is not known; remove it")
            found.append(Sample(f"{wnid}/{name}", numbers[wnid], size_bytes, where=f"{split}/{name}"))
        if not found:
            inside = sorted(folders_in(folder))
            raise UserError(
                f"{folder} has no images right in it, as Kaggle's has"
                + (f", but folders ({some(inside)}): give {self.images} as `--source-format tree`" if inside else "")
            )
        return sorted_by_key(found)

    def read(self, where: str) -> bytes:
        """The bytes of a file, by its path under the folder of images."""
        return (self.images / where).read_bytes()


def _read_solution(path: Path) -> dict[str, str]:
    """Image name to wnid: the first word of each prediction string, `n01978287 85 1 499 272`.

    Raises:
        UserError: the file is not there, or a line is not as it should be.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
    except FileNotFoundError:
        raise UserError(
            f"{path} is not there, and val/ has no labels without it: take it from the download, or `--split train`"
        ) from None
    except (OSError, ValueError, csv.Error) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not rows or [cell.strip() for cell in rows[0]] != ["ImageId", "PredictionString"]:
        raise UserError(f"{path} does not begin with ImageId,PredictionString: take it from the download again")
    labels = {}
    for number, row in enumerate(rows[1:], 2):
        wnid = row[1].split()[0] if len(row) == 2 and row[1].split() else ""
        if row and not WNID.match(wnid):
            raise UserError(f"{path}, line {number}: no wnid where ImageId,PredictionString should be")
        if row:
            labels[row[0]] = wnid
    return labels
