"""Compares the files of a source with their official MD5 sums."""

import hashlib
from collections.abc import Iterable

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.vocabulary import SplitName
from imagenet_mds_convert.sources.base import Source, Track, untracked

_CHUNK_BYTES = 8 * 10**6


def verify_checksums(source: Source, splits: Iterable[SplitName], track: Track = untracked) -> None:
    """Compare the MD5 sum of every file that the splits need with the official one, at the speed of the disk.

    The result is not stored: each call reads the files again.

    Raises:
        UserError: the source has no official checksums, a checksum differs, or a file cannot be read.
    """
    official = source.official_files(splits)
    if official is None:
        raise UserError(
            f"--verify-source: only the official archives have known MD5 sums, ImageNet's and CIFAR-10's, and this "
            f"is {source.kind}"
        )
    for name, wanted in official.md5.items():
        found, where = _md5(official.storage, name, track), f"{official.storage.location}/{name}"
        if mistake := official.mistaken.get(found):
            raise UserError(f"{where} {mistake}")
        if found != wanted:
            raise UserError(f"{where} has MD5 {found}, and the official one has {wanted}: download it again")


def _md5(storage: Storage, name: str, track: Track) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    if (size_bytes := storage.size_bytes(name)) is None:
        raise UserError(f"{storage.location}/{name} no longer exists")
    with track(f"MD5 of {name}", size_bytes // 10**6, "MB") as advance:
        try:
            for start in range(0, size_bytes, _CHUNK_BYTES):
                chunk = storage.read_range(name, start, _CHUNK_BYTES)
                digest.update(chunk)
                advance(len(chunk) // 10**6)
        except OSError as error:
            raise UserError(f"{storage.location}/{name} cannot be read: {error.strerror or error}") from None
    return digest.hexdigest()
