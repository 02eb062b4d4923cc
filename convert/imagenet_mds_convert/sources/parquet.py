"""ImageNet as Hugging Face has it: `data/train-00000-of-00294.parquet`, `data/validation-00000-of-00014.parquet`, with
columns `image{bytes, path}` and `label`. Local files here, the gated hub in `hub.py`.

The end of `path` is the wnid (`n01440764_10026_n01440764.JPEG`); without it, it is the original name, so keys are those
of the extracted tree and the same images give the same shards.

Parquet knows no sizes of single values, so listing reads each file once, a row group at a time, and keeps the lengths.
A read takes in the whole row group (100 images, 11 MB, in the hub's files), for a dataset's order mixes them all: this
is the slowest of the sources; the official archives read an image alone.
"""

import errno
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS
from imagenet_mds_convert.sources.base import Sample
from imagenet_mds_convert.sources.classes import imagenet_names
from imagenet_mds_convert.sources.folders import is_image_name, sorted_by_key
from imagenet_mds_convert.sources.ranges import RangeFile

_FILE = re.compile(r"(train|validation)-\d{5}-of-(\d{5})(-[0-9a-f]+)?\.parquet\Z")
_PREFIXES = {"train": "train-", "val": "validation-"}
_PATH = re.compile(r"([^/\n\r]+)_(n\d{8})(\.[A-Za-z]+)\Z")
_THREADS = 4
NEEDS_HF = "reading Hugging Face's files needs pyarrow and huggingface_hub: pip install 'imagenet-mds[hf]'"


def parquet_files(storage: Storage) -> tuple[str, ...]:
    """The files of train and val, in `data/` or right here, sorted; none where this is not Hugging Face's layout."""
    for folder in ("data/", ""):
        try:
            names = (storage.child("data") if folder else storage).list_names()
        except NotADirectoryError:
            continue
        if found := select_files([f"{folder}{name}" for name in names]):
            return found
    return ()


def select_files(names: list[str]) -> tuple[str, ...]:
    """Those of many names that hold train and val."""
    return tuple(sorted(name for name in names if _FILE.match(name.rpartition("/")[2])))


@dataclass(frozen=True)
class ParquetSource:
    """Parquet files of ImageNet. A sample's `where` is (file, row group, row)."""

    storage: Storage
    files: tuple[str, ...]
    kind: str = "parquet"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage) -> "ParquetSource":
        """Look at the names of the files.

        Raises:
            UserError: there are none, or pyarrow is not installed.
        """
        files = parquet_files(storage)
        if not files:
            raise UserError(
                f"{storage.location} has no train-*-of-*.parquet or validation-*-of-*.parquet, here or in data/"
            )
        _parquet()
        return cls(storage, files)

    @property
    def classes(self) -> tuple[str, ...]:
        """The 1,000 wnids."""
        return tuple(imagenet_names())

    @property
    def names(self) -> tuple[str, ...]:
        """Their names for people."""
        return tuple(imagenet_names().values())

    @property
    def splits(self) -> tuple[str, ...]:
        """Those that have a file."""
        return tuple(split for split in SPLITS if self.split_files(split))

    @property
    def notes(self) -> tuple[str, ...]:
        """Which files are missing, by the number in their names."""
        notes = []
        for split in self.splits:
            files = self.split_files(split)
            match = _FILE.match(files[0].rpartition("/")[2])
            assert match is not None  # else it would not be among the files
            if len(files) != int(match[2]):
                notes.append(f"{len(files)} of the {int(match[2])} parquet files of {split} are here")
        return tuple(notes)

    def split_files(self, split: str) -> list[str]:
        """The files of a split, in order."""
        return [name for name in self.files if name.rpartition("/")[2].startswith(_PREFIXES[split])]

    @property
    def reads_at_once(self) -> int:
        """A few only: each holds a row group."""
        return _THREADS if self.storage.remote else 1

    def samples(self, split: str) -> list[Sample]:
        """Every image of the split, sorted by key.

        Raises:
            UserError: a file is broken or has other columns, a label does not fit the wnid in the path, a path stands
                twice.
        """
        numbers = {wnid: number for number, wnid in enumerate(self.classes)}
        pool = ThreadPoolExecutor(_THREADS)
        try:
            listed = [pool.submit(self._list_file, name, numbers) for name in self.split_files(split)]
            found = sorted_by_key(sample for future in listed for sample in future.result())
        finally:
            pool.shutdown(cancel_futures=True)
        if not found:
            raise UserError(f"{self.storage.location}: the parquet files of {split} have no rows")
        for one, other in pairwise(found):
            if one.key == other.key:
                places = " and ".join(
                    f"{name}, row group {group}, row {row}" for name, group, row in (one.where, other.where)
                )
                raise UserError(f"{self.storage.location} has {one.key} twice: {places}")
        return found

    def read(self, where: tuple[str, int, int]) -> bytes:
        """The bytes of an image, by file, row group and row."""
        name, group, row = where
        value = _images(self, name, group)[row].as_py()
        return value or b""

    def _list_file(self, name: str, numbers: dict[str, int]) -> list[Sample]:
        import pyarrow.compute

        found: list[Sample] = []
        with _explained(self.storage, name):
            file = _open(self.storage, name)
            _refuse_other_columns(f"{self.storage.location}/{name}", file.schema_arrow)
            for group in range(file.num_row_groups):
                table = file.read_row_group(group, columns=["image.bytes", "image.path", "label"])
                image = table["image"].combine_chunks()
                lengths = pyarrow.compute.binary_length(image.field("bytes")).to_pylist()
                paths, labels = image.field("path").to_pylist(), table["label"].to_pylist()
                for row, (path, label, size_bytes) in enumerate(zip(paths, labels, lengths, strict=True)):
                    key = _key(path)
                    wnid = key.partition("/")[0] if key else None
                    if key is None or wnid not in numbers or numbers[wnid] != label:
                        raise UserError(
                            f"{self.storage.location}/{name}, row group {group}, row {row}: label {label} does not fit "
                            f"the path {path!r}: the wnid at its end should be {_expected(self.classes, label)}"
                        )
                    found.append(Sample(key, label, size_bytes or 0, (name, group, row)))
        return found


def _key(path: object) -> str | None:
    """`n01440764_10026_n01440764.JPEG` to `n01440764/n01440764_10026.JPEG`."""
    match = _PATH.match(path) if isinstance(path, str) else None
    if match is None or not is_image_name(match[1] + match[3]):
        return None
    return f"{match[2]}/{match[1]}{match[3]}"


def _expected(classes: tuple[str, ...], label: object) -> str:
    return classes[label] if isinstance(label, int) and 0 <= label < len(classes) else "one of ImageNet's 1,000"


@lru_cache(maxsize=2)
def _images(source: ParquetSource, name: str, group: int) -> Any:
    """The images of a row group, as pyarrow's array of bytes."""
    try:
        table = _open(source.storage, name).read_row_group(group, columns=["image.bytes"])
    except (OSError, ValueError) as error:  # pyarrow's errors are both
        raise OSError(errno.EIO, f"{name}, row group {group}: {error}") from error
    return table["image"].combine_chunks().field("bytes")


def _open(storage: Storage, name: str) -> Any:
    size_bytes = storage.size_bytes(name)
    if size_bytes is None:
        raise FileNotFoundError(errno.ENOENT, "No such file", name)
    return _parquet().ParquetFile(RangeFile(storage, name, 0, size_bytes))


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(NEEDS_HF) from None
    return pyarrow.parquet


def _refuse_other_columns(where: str, schema: Any) -> None:
    columns = {field.name: field.type for field in schema}
    image = columns.get("image")
    inner = {image.field(place).name for place in range(image.num_fields)} if image is not None else set()
    if not {"bytes", "path"} <= inner or "label" not in columns:
        raise UserError(f"{where} has columns {', '.join(columns)}, and image{{bytes, path}} and label are needed")


@contextmanager
def _explained(storage: Storage, name: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{storage.location}/{name} cannot be read, it is truncated or no parquet file ({error}): download it again"
        ) from None
