"""Images of ImageNet in Hugging Face's parquet files, with columns `image{bytes, path}` and `label`. `parquet_files.py`
says which files these are; `hub.py` downloads them from the gated hub.

`path` is the original name with the wnid appended (`n01440764_10026_n01440764.JPEG`), so keys are those of the
extracted tree, and the same images give the same shards.

Parquet does not store the sizes of single values, so listing reads each file once and keeps the lengths. A single image
costs reading its row group, of 100 images as on the hub or of a whole file, and stored order mixes them all. So the
images are gathered: each pass over the files copies those of as many shards as the disk has room for.
"""

import errno
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise
from typing import Any

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, Gatherer, ImageFile, Sample, SourceDefaults, Track
from imagenet_mds_convert.sources.classes import imagenet_names
from imagenet_mds_convert.sources.folders import some, sorted_by_key
from imagenet_mds_convert.sources.names import NotTakenCount, is_image_name
from imagenet_mds_convert.sources.parquet_files import (
    DATA_FOLDER,
    count_beside,
    is_of,
    note_missing_files,
    parquet_files,
)
from imagenet_mds_convert.sources.ranges import RangeFile

_PATH = re.compile(r"([^/\n\r]+)_(n\d{8})(\.[A-Za-z]+)\Z")
_THREADS = 4
_BYTES = "image.bytes"
_BUFFER_BYTES = 8 << 20
"""Bytes of a column read at once. Without this limit, pyarrow reads those of a whole row group first."""
_BATCH_ROWS = 100
"""Rows in memory at a time: as many as the hub's row groups have, some 11 MB."""
NEEDS_HF = "reading Hugging Face's files needs pyarrow and huggingface_hub: pip install 'imagenet-mds[hf]'"


@dataclass(frozen=True)
class ParquetSource(SourceDefaults):
    """Parquet files of ImageNet. A sample's `where` is (file, row group, row)."""

    storage: Storage
    files: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    not_taken: Mapping[SplitName, NotTakenCount] = field(default_factory=dict, compare=False, repr=False)
    kind: SourceKind = "parquet"
    drawn: bool = False

    @classmethod
    def open(cls, storage: Storage, splits: tuple[SplitName, ...] = SPLITS) -> "ParquetSource":
        """List the names of the splits' files.

        Raises:
            UserError: there are none, those of a split are of two sets, or pyarrow is not installed.
        """
        files = parquet_files(storage)
        if not files:
            raise UserError(
                f"{storage.location} has no train-*-of-*.parquet or validation-*-of-*.parquet, here or in "
                f"{DATA_FOLDER}/"
            )
        _parquet()
        wanted = tuple(name for split in splits for name in files if is_of(name, split))
        notes = note_missing_files(storage.location, wanted)
        counts = {split: NotTakenCount() for split in splits if any(is_of(name, split) for name in wanted)}
        notes += count_beside(storage, files, counts, splits)
        return cls(storage, wanted, tuple(notes), counts)

    def __getstate__(self) -> dict[str, Any]:
        """Everything but the counts of what is not taken, which a shard task does not need."""
        return vars(self) | {"not_taken": {}}

    @property
    def classes(self) -> tuple[str, ...]:
        """The 1,000 wnids."""
        return tuple(imagenet_names())

    @property
    def class_names(self) -> tuple[str, ...]:
        """The names of the 1,000 wnids."""
        return tuple(imagenet_names().values())

    @property
    def splits(self) -> tuple[SplitName, ...]:
        """The splits that have a file."""
        return tuple(split for split in SPLITS if self.split_files(split))

    def split_files(self, split: SplitName) -> list[str]:
        """The files of a split, in order."""
        return [name for name in self.files if is_of(name, split)]

    @property
    def reads_at_once(self) -> int:
        """A few where requests go over a network, because each read holds a row group; else 1."""
        return _THREADS if self.storage.remote else 1

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key.

        Raises:
            UserError: a file is broken or has other columns, a label does not match the wnid in the path, or a path
                occurs twice.
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
        return Found(found, self.not_taken[split].not_taken() if split in self.not_taken else ())

    @property
    def gatherer(self) -> Gatherer:
        """The source itself."""
        return self

    def group_of(self, sample: Sample) -> tuple[str, int]:
        """File and row group."""
        name, group, _ = sample.where
        return name, group

    def gather(self, samples: Sequence[Sample], file: ImageFile, track: Track) -> Mapping[Any, tuple[int, int]]:
        """Copy images into a file; see `Gatherer`."""
        wanted: dict[str, dict[int, set[int]]] = {}
        for sample in samples:
            name, group, row = sample.where
            wanted.setdefault(name, {}).setdefault(group, set()).add(row)
        places: dict[Any, tuple[int, int]] = {}
        pool = ThreadPoolExecutor(_THREADS)
        try:
            copies = [pool.submit(self._copy, name, groups, file) for name, groups in wanted.items()]
            with track("gathering images", len(copies), "files") as advance:
                for copy in copies:
                    places |= copy.result()
                    advance(1)
        finally:
            pool.shutdown(cancel_futures=True)
        return places

    def _copy(self, name: str, groups: Mapping[int, set[int]], file: ImageFile) -> dict[Any, tuple[int, int]]:
        places: dict[Any, tuple[int, int]] = {}
        parquet = _opened(self.storage, name)
        for group, rows in groups.items():
            first = 0
            for batch in _batches(self.storage, name, parquet, group, [_BYTES]):
                images = batch.column("image").field("bytes")
                for row in rows.intersection(range(first, first + len(images))):
                    places[name, group, row] = file.put(images[row - first].as_py() or b"")
                first += len(images)
        return places

    def read(self, where: tuple[str, int, int]) -> bytes:
        """The bytes of an image, by file, row group and row.

        Raises:
            OSError: the file cannot be read.
        """
        name, group, row = where
        value = _images(self, name, group)[row].as_py()
        return value or b""

    def _list_file(self, name: str, numbers: dict[str, int]) -> list[Sample]:
        import pyarrow.compute

        found: list[Sample] = []
        file = _opened(self.storage, name)
        where = f"{self.storage.location}/{name}"
        _refuse_other_columns(where, file.schema_arrow)
        nameless = 0
        for group in range(file.num_row_groups):
            row = 0
            for batch in _batches(self.storage, name, file, group, [_BYTES, "image.path", "label"]):
                image = batch.column("image")
                lengths = pyarrow.compute.binary_length(image.field("bytes")).to_pylist()
                paths, labels = image.field("path").to_pylist(), batch.column("label").to_pylist()
                for path, label, size_bytes in zip(paths, labels, lengths, strict=True):
                    nameless += path is None
                    key = self._key(name, group, row, path, label)
                    wnid = key.partition("/")[0] if key else None
                    if key is None or wnid not in numbers or numbers[wnid] != label:
                        raise UserError(
                            f"{self.storage.location}/{name}, row group {group}, row {row}: label {label} does not "
                            f"match the path {path!r}: the wnid at its end should be {_expected(self.classes, label)} "
                            f"(only ImageNet-1K is read from parquet)"
                        )
                    found.append(Sample(key, label, size_bytes or 0, (name, group, row)))
                    row += 1
        # One path that fits its label says whose labels they are; without any, the names of the labels must.
        if nameless and nameless == len(found):
            _refuse_other_labels(where, file.schema_arrow)
        return found

    def _key(self, name: str, group: int, row: int, path: object, label: object) -> str | None:
        """The key of a path: `n01440764_10026_n01440764.JPEG` gives `n01440764/n01440764_10026.JPEG`. Without a path it
        is named by its place. None if the path is another one."""
        if path is None and isinstance(label, int) and 0 <= label < len(self.classes):
            basename = name.rpartition("/")[2].removesuffix(".parquet")
            return f"{self.classes[label]}/{basename}_{group:04}_{row:06}"
        match = _PATH.match(path) if isinstance(path, str) else None
        if match is None or not is_image_name(match[1] + match[3]):
            return None
        return f"{match[2]}/{match[1]}{match[3]}"


_LEAST_SAME_NAMES = 900
"""Of the 1,000 names of ImageNet's classes, those that must be spelled as here; some differ between copies."""


def _refuse_other_labels(where: str, schema: Any) -> None:
    """Refuse a file that does not say that its labels are ImageNet's, as those of the hub's library do.

    Raises:
        UserError: it says that they are others, or nothing.
    """
    try:
        names = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        raise UserError(
            f"{where} has neither paths nor names of its labels, so nothing says that they are ImageNet's: write the "
            f"images into class folders"
        ) from None
    firsts = [str(name).split(",")[0].strip() for name in names]
    known = imagenet_names()
    same = max(sum(a == b for a, b in zip(firsts, ours, strict=False)) for ours in (known, known.values()))
    if len(firsts) != len(known) or same < _LEAST_SAME_NAMES:
        raise UserError(
            f"{where} says that its labels are {len(firsts):,} other classes than ImageNet's ({some(firsts)}): only "
            f"ImageNet-1K is read from parquet; write the images into class folders"
        )


def _opened(storage: Storage, name: str) -> Any:
    """A file, of which the footer is read.

    Raises:
        UserError: it cannot be read.
    """
    with _explained(storage, name):
        return _open(storage, name)


def _batches(storage: Storage, name: str, file: Any, group: int, columns: list[str]) -> Iterator[Any]:
    """The rows of a row group in batches, because a group may be a whole file, and only some pages need be in memory.

    Raises:
        UserError: the file cannot be read.
    """
    with _explained(storage, name):
        yield from file.iter_batches(_BATCH_ROWS, row_groups=[group], columns=columns)


def _expected(classes: tuple[str, ...], label: object) -> str:
    return classes[label] if isinstance(label, int) and 0 <= label < len(classes) else "one of ImageNet's 1,000"


@lru_cache(maxsize=2)
def _images(source: ParquetSource, name: str, group: int) -> Any:
    """The images of a row group, as pyarrow's array of bytes."""
    try:
        table = _open(source.storage, name).read_row_group(group, columns=[_BYTES])
    except (OSError, ValueError) as error:  # pyarrow raises both
        raise OSError(errno.EIO, f"{name}, row group {group}: {error}") from error
    return table["image"].combine_chunks().field("bytes")


def _open(storage: Storage, name: str) -> Any:
    size_bytes = storage.size_bytes(name)
    if size_bytes is None:
        raise FileNotFoundError(errno.ENOENT, "No such file", name)
    file = RangeFile(storage, name, 0, size_bytes)
    return _parquet().ParquetFile(file, pre_buffer=False, buffer_size=_BUFFER_BYTES)


def _parquet() -> Any:
    try:
        import pyarrow.parquet
    except ImportError:
        raise UserError(NEEDS_HF) from None
    return pyarrow.parquet


def _refuse_other_columns(where: str, schema: Any) -> None:
    """Refuse a file with other columns, or of other types, than the hub's files of ImageNet.

    Raises:
        UserError: it has them.
    """
    from pyarrow import types

    columns = {field.name: field.type for field in schema}
    image = columns.get("image")
    fields = [] if image is None else [image.field(place) for place in range(image.num_fields)]
    inner = {field.name: field.type for field in fields}
    if not {"bytes", "path"} <= inner.keys() or "label" not in columns:
        raise UserError(f"{where} has columns {', '.join(columns)}, and needs image{{bytes, path}} and label")
    for column, found, of_type, needed in (
        ("image.bytes", inner["bytes"], (types.is_binary, types.is_large_binary, types.is_fixed_size_binary), "binary"),
        ("label", columns["label"], (types.is_integer,), "int64, the numbers of ImageNet's classes"),
    ):
        if not any(fits(found) for fits in of_type):
            raise UserError(f"{where} has column {column} of type {found}, and needs {needed}")


@contextmanager
def _explained(storage: Storage, name: str) -> Iterator[None]:
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(
            f"{storage.location}/{name} cannot be read, it is truncated or not parquet ({error}): download it again"
        ) from None
