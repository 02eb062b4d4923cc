"""The MD5 sums of the official archives, and comparing with them."""

import hashlib
from collections.abc import Iterable

from imagenet_mds.errors import UserError
from imagenet_mds.progress import ProgressLine
from imagenet_mds.storage import Storage
from imagenet_mds_convert.source import Source
from imagenet_mds_convert.sources.archives import TASK_3_MISTAKE, TRAIN_BASENAME, VAL_BASENAME, ArchivesSource
from imagenet_mds_convert.sources.devkit import DEVKIT_BASENAME

SUMS = {
    TRAIN_BASENAME: "1d675b47d978889d74fa0da5fadfb00e",
    VAL_BASENAME: "29b22e2961454d5413ddabcf34fc5622",
    DEVKIT_BASENAME: "fa75699e90414af021442c21a62c3abf",
}
TASK_3_SUM = "ccaf1013018ac1037801578038d370da"

_FILES = {"train": (TRAIN_BASENAME,), "val": (DEVKIT_BASENAME, VAL_BASENAME)}
_CHUNK_BYTES = 8 * 10**6


def verify_source(source: Source, splits: Iterable[str]) -> None:
    """Compare the MD5 of every archive that the splits need with the official one, with a line of progress each.

    Nothing is remembered: it is done each time that it is asked for, at the speed of the disk.

    Raises:
        UserError: the source has no known sums, an archive has another sum, or cannot be read.
    """
    if not isinstance(source, ArchivesSource):
        raise UserError(f"--verify-source: only the official archives have known MD5 sums, and this is {source.kind}")
    for split in splits:
        for name in _FILES[split]:
            found, where = _md5(source.storage, name), f"{source.storage.location}/{name}"
            if found == TASK_3_SUM:
                raise UserError(f"{where} {TASK_3_MISTAKE}")
            if found != SUMS[name]:
                raise UserError(f"{where} has MD5 {found}, and the official one has {SUMS[name]}: download it again")


def _md5(storage: Storage, name: str) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if (size_bytes := storage.size_bytes(name)) is None:
        raise UserError(f"{storage.location}/{name} is not there any more")
    with ProgressLine(f"MD5 of {name}", size_bytes // 10**6, "MB") as progress:
        try:
            for start in range(0, size_bytes, _CHUNK_BYTES):
                chunk = storage.read_range(name, start, _CHUNK_BYTES)
                digest.update(chunk)
                progress.advance(len(chunk) // 10**6)
        except OSError as error:
            raise UserError(f"{storage.location}/{name} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()
