"""Where files lie: a folder on a disk, or a prefix in S3. The one way in which the program reads and writes data.

A storage is small and picklable; names in it are relative, with forward slashes. Writing is atomic: a name stands for
the whole of what was written, or for what was there before.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from imagenet_mds.errors import UserError
from imagenet_mds.files import write_atomic


@dataclass(frozen=True)
class Entry:
    """A file in a storage: its name and its size in bytes."""

    name: str
    size_bytes: int


class Storage(Protocol):
    """Files under one location."""

    @property
    def location(self) -> str:
        """The location as a user types it."""

    def child(self, name: str) -> "Storage":
        """The storage below a folder of this one."""

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, None where there is none."""

    def read(self, name: str) -> bytes:
        """A whole file.

        Raises:
            FileNotFoundError: it is not there.
            OSError: it cannot be read.
        """

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the file ends before.

        Raises:
            OSError: as `read`.
        """

    def write(self, name: str, data: bytes) -> None:
        """Make a file of this content durable, in place of what was there.

        Raises:
            OSError: it cannot be written; what was there stays.
        """

    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""

    def files(self) -> Iterator[Entry]:
        """Every file, in folders below too, in no particular order."""

    def folders(self) -> list[str]:
        """The names of the folders right here, sorted."""


@dataclass(frozen=True)
class LocalStorage:
    """A folder on a disk of this machine."""

    root: Path

    @property
    def location(self) -> str:
        """The folder's path."""
        return str(self.root)

    def child(self, name: str) -> "LocalStorage":
        """The storage below a folder of this one."""
        return LocalStorage(self.root / name)

    def size_bytes(self, name: str) -> int | None:
        """The size of a file, None where there is none."""
        path = self.root / name
        return path.stat().st_size if path.is_file() else None

    def read(self, name: str) -> bytes:
        """A whole file."""
        return (self.root / name).read_bytes()

    def read_range(self, name: str, start: int, length: int) -> bytes:
        """`length` bytes from `start` on; fewer where the file ends before."""
        descriptor = os.open(self.root / name, os.O_RDONLY)
        try:
            parts = []
            while length > 0 and (part := os.pread(descriptor, length, start)):
                parts.append(part)
                start, length = start + len(part), length - len(part)
            return b"".join(parts)
        finally:
            os.close(descriptor)

    def write(self, name: str, data: bytes) -> None:
        """Make a file of this content durable; folders on the way are made."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)

    def delete(self, name: str) -> None:
        """Remove a file; nothing where there is none."""
        (self.root / name).unlink(missing_ok=True)

    def files(self) -> Iterator[Entry]:
        """Every file, in folders below too."""
        for folder, _, names in os.walk(self.root):
            for name in names:
                path = Path(folder, name)
                if path.is_file():
                    yield Entry(path.relative_to(self.root).as_posix(), path.stat().st_size)

    def folders(self) -> list[str]:
        """The names of the folders right here, sorted."""
        with os.scandir(self.root) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())


def open_storage(location: str) -> Storage:
    """The storage at a location that a user typed. Nothing is looked at yet.

    Raises:
        UserError: an address of a kind that the program does not know.
    """
    if "://" in location:
        raise UserError(f"{location}: this version reads and writes local folders only; give a folder")
    return LocalStorage(Path(location))
