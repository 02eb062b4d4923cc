"""Storage of bytes: a folder on a disk, or a prefix in S3. `open_storage` opens what a user typed."""

from pathlib import Path

from imagenet_mds.errors import UserError
from imagenet_mds.storage.base import Storage
from imagenet_mds.storage.local import LocalStorage


def open_storage(location: str) -> Storage:
    """Return the storage at a location that a user typed. Nothing is read yet.

    Raises:
        UserError: the location is empty, a file, a link that leads nowhere, or an address of an unknown kind.
    """
    if not location:
        raise UserError("a location is empty: give a folder or an s3:// address")
    if location.startswith("s3://"):
        from imagenet_mds.storage.s3 import S3Storage  # importing boto3 takes a quarter of a second

        return S3Storage.at(location)
    if "://" in location:
        raise UserError(f"{location}: give a folder or an s3:// address")
    path = Path(location)
    if path.exists() and not path.is_dir():
        raise UserError(f"{path} is a file: give a folder")
    if path.is_symlink() and not path.exists():
        raise UserError(f"{path} is a link to {path.readlink()}, which does not exist: give a folder")
    return LocalStorage(path)
