"""The MD5 sums of the official archives of ImageNet and of the batches of CIFAR-10, and comparing with them."""

import hashlib
from collections.abc import Iterable, Mapping

from imagenet_mds.errors import UserError
from imagenet_mds.progress import ProgressLine
from imagenet_mds.storage.base import Storage
from imagenet_mds_convert.sources.archives import TASK_3_MISTAKE, TRAIN_BASENAME, VAL_BASENAME, ArchivesSource
from imagenet_mds_convert.sources.base import Source
from imagenet_mds_convert.sources.cifar10 import BATCHES, META_BASENAME, Cifar10Source
from imagenet_mds_convert.sources.devkit import DEVKIT_BASENAME

SUMS = {
    TRAIN_BASENAME: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_BASENAME: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_BASENAME: "fa75699e90414af021442c21a62c3abf",
}
TASK_3_SUM = "ccaf1013018ac1037801578038d370da"

CIFAR10_SUMS = {
    META_BASENAME: "5ff9c542aee3614f3951f8cda6e48888",
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
}
"""torchvision's list. The archive that they come in is not read, so its sum is of no use here."""

_FILES = {"train": (TRAIN_BASENAME,), "val": (DEVKIT_BASENAME, VAL_BASENAME)}
_CHUNK_BYTES = 8 * 10**6


def verify_source(source: Source, splits: Iterable[str], *, as_json: bool = False) -> None:
    """Compare the MD5 of every file that the splits need with the official one, with a line of progress each, of JSON
    on request.

    Nothing is remembered: it is done each time that it is asked for, at the speed of the disk.

    Raises:
        UserError: the source has no known sums, a file has another sum, or cannot be read.
    """
    if isinstance(source, ArchivesSource):
        _compare(source.storage, {name: SUMS[name] for split in splits for name in _FILES[split]}, as_json)
    elif isinstance(source, Cifar10Source):
        names = [META_BASENAME, *(name for split in splits for name in BATCHES[split])]
        _compare(source.storage, {name: CIFAR10_SUMS[name] for name in names}, as_json)
    else:
        raise UserError(
            f"--verify-source: only the official archives have known MD5 sums, ImageNet's and CIFAR-10's, and this "
            f"is {source.kind}"
        )


def _compare(storage: Storage, known: Mapping[str, str], as_json: bool) -> None:
    for name, official in known.items():
        found, where = _md5(storage, name, as_json), f"{storage.location}/{name}"
        if found == TASK_3_SUM:
            raise UserError(f"{where} {TASK_3_MISTAKE}")
        if found != official:
            raise UserError(f"{where} has MD5 {found}, and the official one has {official}: download it again")


def _md5(storage: Storage, name: str, as_json: bool) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if (size_bytes := storage.size_bytes(name)) is None:
        raise UserError(f"{storage.location}/{name} is not there any more")
    with ProgressLine(f"MD5 of {name}", size_bytes // 10**6, "MB", as_json=as_json) as progress:
        try:
            for start in range(0, size_bytes, _CHUNK_BYTES):
                chunk = storage.read_range(name, start, _CHUNK_BYTES)
                digest.update(chunk)
                progress.advance(len(chunk) // 10**6)
        except OSError as error:
            raise UserError(f"{storage.location}/{name} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()
