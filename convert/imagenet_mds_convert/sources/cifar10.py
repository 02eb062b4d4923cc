"""CIFAR-10's python batches as distributed: `cifar-10-batches-py/data_batch_1` to `5`, `test_batch`, `batches.meta`.

They are pickles, read here without torchvision, because the converter must not import torch, and without executing what
a pickle may name: only the few names that arrays and bytes need are allowed. An image is 32 x 32 pixels of 3 bytes.
`read` returns it as PNG, which the converter turns into RGB JPEG as it does any PNG; one warning says so for all.
"""

import io
import pickle
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SPLITS, SourceKind, SplitName
from imagenet_mds_convert.sources.base import Found, OfficialFiles, Sample, SourceDefaults
from imagenet_mds_convert.sources.folders import sorted_by_key

FOLDER_NAME = "cifar-10-batches-py"
META_BASENAME = "batches.meta"
BATCHES: dict[SplitName, tuple[str, ...]] = {
    "train": tuple(f"data_batch_{number}" for number in range(1, 6)),
    "val": ("test_batch",),
}
OFFICIAL_MD5 = {
    META_BASENAME: "5ff9c542aee3614f3951f8cda6e48888",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""MD5 of each file, from torchvision. The archive itself is never read, so its checksum is not listed."""

_SIDE = 32
_IMAGE_BYTES = 3 * _SIDE * _SIDE


def find_cifar10(storage: Storage) -> dict[SplitName, Storage]:
    """The folder of CIFAR-10, by the splits of which it has a batch."""
    folder = _folder(storage)
    if folder is None:
        return {}
    return {
        split: folder for split, names in BATCHES.items() if any(folder.size_bytes(name) is not None for name in names)
    }


def _folder(storage: Storage) -> Storage | None:
    """The folder that holds `batches.meta`: this one, or the one that unpacking the download creates in it."""
    return next((at for at in (storage, storage.child(FOLDER_NAME)) if at.size_bytes(META_BASENAME) is not None), None)


@dataclass(frozen=True)
class Cifar10Source(SourceDefaults):
    """CIFAR-10. A sample's `where` is (batch, index), and its size is that of its pixels."""

    storage: Storage
    classes: tuple[str, ...]
    splits: tuple[SplitName, ...]
    warnings: tuple[str, ...] = ("CIFAR-10's images are pixels, not files: each is turned into RGB JPEG",)
    kind: SourceKind = "cifar10"
    drawn: bool = True

    @classmethod
    def open(cls, storage: Storage, wanted: tuple[SplitName, ...] = SPLITS) -> "Cifar10Source":
        """Read the names of the classes, and look which batches of the splits there are.

        Raises:
            UserError: it is not CIFAR-10, or a batch is missing.
        """
        if (found := _folder(storage)) is None:
            raise UserError(f"{storage.location} has no {META_BASENAME}, here or in {FOLDER_NAME}/: it is not CIFAR-10")
        splits: list[SplitName] = []
        for split in wanted:
            batches = BATCHES[split]
            missing = [name for name in batches if found.size_bytes(name) is None]
            if missing and len(missing) < len(batches):
                raise UserError(f"{found.location} lacks {missing[0]}: download it again")
            if not missing:
                splits.append(split)
        if not splits:
            raise UserError(f"{found.location} has {META_BASENAME} but no batches: download it again")
        return cls(found, tuple(sorted(_label_names(found))), tuple(splits))

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes themselves, which are words."""
        return self.classes

    @property
    def reads_at_once(self) -> int:
        """One, because batches stay in memory."""
        return 1

    def official_files(self, splits: Iterable[SplitName]) -> OfficialFiles:
        """The batches of these splits, and `batches.meta`."""
        names = [META_BASENAME, *(name for split in splits for name in BATCHES[split])]
        return OfficialFiles(self.storage, {name: OFFICIAL_MD5[name] for name in names})

    def find(self, split: SplitName) -> Found:
        """Every image of the split, sorted by key: `cat/data_batch_1_00000.png`.

        Raises:
            UserError: a batch cannot be read, or is malformed.
        """
        names = _label_names(self.storage)
        numbers = {name: number for number, name in enumerate(self.classes)}
        samples = (
            Sample(f"{names[label]}/{batch}_{index:05}.png", numbers[names[label]], _IMAGE_BYTES, (batch, index))
            for batch in BATCHES[split]
            for index, label in enumerate(_batch(self, batch)[1])
        )
        return Found(sorted_by_key(samples))

    def read(self, where: tuple[str, int]) -> bytes:
        """An image as PNG.

        Raises:
            UserError: its batch cannot be read.
        """
        batch, index = where
        # (channels, rows, columns) to (rows, columns, channels)
        planes = _batch(self, batch)[0][index].reshape(3, _SIDE, _SIDE)
        buffer = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(planes.transpose(1, 2, 0))).save(buffer, "PNG", compress_level=1)
        return buffer.getvalue()


@lru_cache(maxsize=6)
def _batch(source: Cifar10Source, name: str) -> tuple[NDArray[np.uint8], list[int]]:
    """Images (count, 3,072) and labels of a batch. All six, 184 MB, stay in memory, because stored order mixes them."""
    raw = _load(source.storage, name)
    pixels, labels, classes = raw.get(b"data"), raw.get(b"labels"), len(source.classes)
    if (
        not isinstance(pixels, np.ndarray)
        or pixels.dtype != np.uint8
        or not isinstance(labels, list)
        or pixels.shape != (len(labels), _IMAGE_BYTES)
        or not all(isinstance(label, int) and 0 <= label < classes for label in labels)
    ):
        raise UserError(f"{source.storage.location}/{name} has no images of 3,072 bytes with labels: download it again")
    return pixels, labels


def _label_names(storage: Storage) -> tuple[str, ...]:
    names = _load(storage, META_BASENAME).get(b"label_names")
    if not isinstance(names, list) or not all(isinstance(name, bytes) and name.isalnum() for name in names):
        raise UserError(f"{storage.location}/{META_BASENAME} has no label_names: download it again")
    if len(set(names)) != len(names) or len(names) < 2:
        raise UserError(f"{storage.location}/{META_BASENAME} has {len(set(names))} names for {len(names)} classes")
    return tuple(name.decode("ascii") for name in names)


def _load(storage: Storage, name: str) -> dict[Any, Any]:
    where = f"{storage.location}/{name}"
    try:
        raw = _ArraysOnly(io.BytesIO(storage.read(name)), encoding="bytes").load()
    except OSError as error:
        raise UserError(f"{where} cannot be read: {error.strerror or error}") from None
    except MemoryError:
        raise
    except Exception as error:  # unpickling a broken file raises whatever it stumbles over
        raise UserError(f"{where} cannot be read ({error}): download it again") from None
    if not isinstance(raw, dict):
        raise UserError(f"{where} is no batch of CIFAR-10: download it again")
    return raw


class _ArraysOnly(pickle.Unpickler):
    """Unpickles numbers, bytes, lists, dictionaries and plain arrays, and refuses everything else."""

    def find_class(self, module: str, name: str, /) -> Callable[..., Any]:
        """The stand-in for a name in the pickle.

        Raises:
            UnpicklingError: the name is not one that arrays need.
        """
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("numpy.core.multiarray", "_reconstruct"): _empty_array,
            ("numpy._core.multiarray", "_reconstruct"): _empty_array,
            ("numpy", "ndarray"): _never_called,
            ("numpy", "dtype"): _byte_dtype,
            ("_codecs", "encode"): _latin1_bytes,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which images do not need")
        return known[module, name]


def _empty_array(*arguments: object) -> NDArray[np.uint8]:
    """An array that the pickle then fills; numpy compares its shape with its bytes."""
    return np.empty(0, np.uint8)


def _never_called(*arguments: object) -> object:
    """The stand-in for `numpy.ndarray`, which the pickle of an array names but does not call."""
    raise pickle.UnpicklingError("it asks for an array without content")


def _byte_dtype(kind: object, *arguments: object) -> "np.dtype[np.uint8]":
    if kind not in ("u1", b"u1"):
        raise pickle.UnpicklingError(f"it has an array of {kind!r}, not of bytes")
    return np.dtype(np.uint8)


def _latin1_bytes(text: str, encoding: object) -> bytes:
    """The bytes that Python 3 wrote as text into a pickle for Python 2."""
    return text.encode("latin1")
