"""The small text files that come with ImageNet: labels of validation images and names of classes, as people save them.

Spreadsheets and editors save text with a byte order mark, in UTF-16 or in Windows' code page, and tables with
semicolons or tabs; all of these are read.
"""

import codecs
import csv
import io
from collections.abc import Mapping

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.classes import WNID
from imagenet_mds_convert.sources.devkit import DEVKIT_BASENAME, read_devkit

SOLUTION_BASENAME = "LOC_val_solution.csv"
SYNSET_MAPPING_BASENAME = "LOC_synset_mapping.txt"
ANNOTATIONS_BASENAME = "val_annotations.txt"
WORDS_BASENAME = "words.txt"
_MOST_BYTES = 1 << 28
"""Size limit of a table; ImageNet's largest has 3 MB."""


def read_text(storage: Storage, name: str) -> str:
    """The text of a small file, in whatever encoding it was saved.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: it cannot be read, or is no text.
    """
    where = f"{storage.location}/{name}"
    try:
        data = storage.read_range(name, 0, _MOST_BYTES)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None
    for encoding in _encodings(data):
        try:
            text = data.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text:
            return text.removeprefix("\ufeff")
    raise UserError(f"{where} is no text file: save it as UTF-8")


def _encodings(data: bytes) -> tuple[str, ...]:
    """The encodings to try, in order."""
    if data.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return ("utf-32",)
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return ("utf-16",)
    # UTF-16 without its mark: these tables begin with ASCII, of which one byte in each pair is zero.
    if data[1:2] == b"\0":
        return ("utf-16-le",)
    if data[:1] == b"\0":
        return ("utf-16-be",)
    return ("utf-8", "cp1252", "latin-1")


def read_synset_names(storage: Storage) -> tuple[dict[str, str], list[str]]:
    """Names of classes from the files that come with Kaggle's download and Tiny-ImageNet, as far as they are here.

    Both have a class and its lemmas a line: `n01440764 tench, Tinca tinca` gives tench.

    Returns:
        The name of each class, and a warning for each file that cannot be read: a dataset needs no names.
    """
    names: dict[str, str] = {}
    warnings = []
    for basename in (WORDS_BASENAME, SYNSET_MAPPING_BASENAME):
        if storage.size_bytes(basename) is None:
            continue
        try:
            lines = read_text(storage, basename).splitlines()
        except UserError as error:
            warnings.append(f"classes keep the names that they have without {basename}: {error}")
            continue
        pairs = (line.split(maxsplit=1) for line in lines if line.strip())
        names |= {pair[0]: pair[1].split(",")[0].strip() for pair in pairs if len(pair) == 2}
    return names, warnings


def read_solution(storage: Storage) -> dict[str, str]:
    """Kaggle's labels of val, image name to wnid: the first word of each prediction string, `n01978287 85 1 499 272`.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: the file is broken, a line is malformed, or an image has two labels.
    """
    path = f"{storage.location}/{SOLUTION_BASENAME}"
    text = read_text(storage, SOLUTION_BASENAME)
    header = text.partition("\n")[0]
    delimiter = next((mark for mark in ",;\t" if mark in header), ",")
    try:
        rows = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter))
    except csv.Error as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    if not rows or [cell.strip().lower() for cell in rows[0]] != ["imageid", "predictionstring"]:
        raise UserError(f"{path} does not begin with ImageId,PredictionString: copy it from the download again")
    labels: dict[str, str] = {}
    for number, row in enumerate(rows[1:], 2):
        if not any(cell.strip() for cell in row):
            continue
        wnid = row[1].split()[0] if len(row) == 2 and row[1].split() else ""
        if not WNID.match(wnid):
            raise UserError(f"{path}, line {number}: expected ImageId,PredictionString, and found no wnid")
        _put_label(labels, row[0].strip(), wnid, path)
    return labels


def read_annotations(storage: Storage) -> dict[str, str]:
    """Tiny-ImageNet's labels of val, file name to wnid: `val_0.JPEG`, tab, `n03444034`, and a box.

    Raises:
        FileNotFoundError: there is no such file.
        UserError: a line is malformed, or an image has two labels.
    """
    path = f"{storage.location}/{ANNOTATIONS_BASENAME}"
    labels: dict[str, str] = {}
    for number, line in enumerate(read_text(storage, ANNOTATIONS_BASENAME).splitlines(), 1):
        words = line.split()
        if words and (len(words) < 2 or not WNID.match(words[1])):
            raise UserError(f"{path}, line {number}: expected a file name and a wnid")
        if words:
            _put_label(labels, words[0], words[1], path)
    return labels


def _put_label(labels: dict[str, str], name: str, wnid: str, path: str) -> None:
    """Add a label to those of the table at `path`, which may list an image twice with the same one."""
    if (before := labels.setdefault(name, wnid)) != wnid:
        raise UserError(f"{path} has two labels for {name}, {before} and {wnid}: remove the wrong line")


def read_devkit_labels(storage: Storage) -> Mapping[str, str]:
    """The labels of the devkit, image name to wnid.

    Raises:
        UserError: the devkit is malformed.
    """
    wnids = read_devkit(storage).val_wnids
    return {f"ILSVRC2012_val_{number:08}": wnid for number, wnid in enumerate(wnids, 1)}


def find_val_labels(split: Storage, root: Storage) -> tuple[Mapping[str, str], str] | None:
    """The labels of a val without class folders, and the location of the table; None if there is no table.

    Args:
        split: the folder of val.
        root: the folder above it.

    Raises:
        UserError: the table is malformed.
    """
    if split.size_bytes(ANNOTATIONS_BASENAME) is not None:
        return read_annotations(split), f"{split.location}/{ANNOTATIONS_BASENAME}"
    if root.size_bytes(SOLUTION_BASENAME) is not None:
        return read_solution(root), f"{root.location}/{SOLUTION_BASENAME}"
    if root.size_bytes(DEVKIT_BASENAME) is not None:
        return read_devkit_labels(root), f"{root.location}/{DEVKIT_BASENAME}"
    return None
